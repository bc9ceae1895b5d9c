"""From a part of the config to its object: the one place where a name in a yaml becomes Python."""

from __future__ import annotations

import importlib
from typing import Any

from rela_cli.config import Part
from rela_cli.errors import ConfigError


def build(part: Part, **context: Any) -> Any:
    """Import `part.target` and call it with the part's options, plus what only the run knows (`context`).

    Which packages may be named was settled when the config was validated.

    Raises:
        ConfigError: when there is no such object, or its keywords do not fit the yaml's keys.
    """
    module, _, name = part.target.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{part.name} names {part.target}, which cannot be imported: {error}") from error
    return target(**part.options, **context)
