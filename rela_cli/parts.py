"""From a part of the config to its object: the one place where a name in a yaml becomes Python."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rela_cli.config import Part
from rela_cli.errors import ConfigError


def build(part: Part, **context: Any) -> Any:
    """Import `part.target` and call it with the part's options, plus what only the run knows (`context`).

    Of the context a target gets what its signature asks for by name: a prior may take `data`, a learner
    `image_size`. Which packages may be named was settled when the config was validated.

    Raises:
        ConfigError: when there is no such object, or its keywords do not fit the yaml's keys.
    """
    module, _, name = part.target.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{part.name} names {part.target}, which cannot be imported: {error}") from error
    return target(**part.options, **asked_for(target, context))


def asked_for(target: Callable[..., Any], context: dict[str, Any]) -> dict[str, Any]:
    """The items of `context` that `target` has a keyword for."""
    parameters = inspect.signature(target).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in context.items() if takes_all or key in names}
