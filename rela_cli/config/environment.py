"""What a config takes from the environment, and how a message about it reads: the interpolation, not the value.

A password may stand in a variable of any name, and a mistyped key is no reason to print it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rela_cli.store.secrets import SHORTEST

RESOLVER = "oc.env"


def hidden(message: str, tree: DictConfig) -> str:
    """The message with `${oc.env:NAME}`, as the yaml has it, in place of what the environment says."""
    values = {key: (text, str(value)) for key, text, value in interpolated(tree)}
    lent = {value for text, value in values.values() if RESOLVER in text}
    for key, (text, value) in values.items():
        if value in lent:  # straight from there, or by way of another key
            message = message.replace(f"{key}={value}", f"{key}={text}")
            message = message.replace(value, text) if len(value) >= SHORTEST else message
    return message


def interpolated(tree: DictConfig) -> Iterator[tuple[str, str, Any]]:
    """Key, text and value of everything that a tree takes from elsewhere; what cannot be resolved is left out."""
    for key, text in leaves(OmegaConf.to_container(tree, resolve=False)):
        if isinstance(text, str) and "${" in text:
            with suppress(OmegaConfBaseException):
                yield key, text, OmegaConf.select(tree, key)


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a tree that is no group or list, under its dotted key: `probe.protocols[0]`."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{key}[{number}]")
    else:
        yield key, tree
