"""From a part of the config to its object: the one place where a name in a yaml becomes Python."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rela_cli.config.schema import HOMES, Part
from rela_cli.errors import ConfigError

MAKERS = (HOMES["learner"], HOMES["optimizer"])  # groups whose parts may be functions


def instantiate(part: Part, **context: Any) -> Any:
    """Call `part.target` with the part's options, plus what only the run knows (`context`).

    Of the context a target gets what its signature asks for by name: a prior may take `data`, a learner
    `image_size`, a method `classes`. Which packages may be named was settled when the config was validated.

    Raises:
        ConfigError: when there is no such object, or its keywords do not fit the yaml's keys.
    """
    target = import_target(part)
    keywords = {**part.options, **asked_for(target, context)}
    try:
        inspect.signature(target).bind(**keywords)
    except TypeError as error:
        keys = ", ".join(part.options) or "none"
        raise ConfigError(f"{part.name}: {part.target} does not fit the keys of its yaml ({keys}): {error}") from error
    return target(**keywords)


def import_target(part: Part) -> Any:
    """What `part.target` names, imported.

    Raises:
        ConfigError: when there is no such object.
    """
    module, _, name = part.target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{part.name} names {part.target}, which cannot be imported: {error}") from error
    if module.partition(".")[0] == "rela_cli" and not is_part(found, module):
        raise ConfigError(f"{part.name} names {part.target}, which is no part that a config can choose")
    return found


def is_part(found: Any, module: str) -> bool:
    """Whether something in a module of ours is a part, rather than a tool of ours or what the module has imported."""
    home = next((home for home in HOMES.values() if f"{module}.".startswith(home)), None)
    kind = inspect.isclass(found) or (home in MAKERS and inspect.isfunction(found))
    return home is not None and kind and found.__module__ == module


def asked_for(target: Callable[..., Any], context: dict[str, Any]) -> dict[str, Any]:
    """The items of `context` that `target` has a keyword for."""
    parameters = inspect.signature(target).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in context.items() if takes_all or key in names}
