"""Where the settings of two runs differ, key by key."""

from __future__ import annotations

from typing import Any


def flattened(tree: Any, name: str = "") -> dict[str, Any]:
    """A tree of mappings as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {k: v for key, inner in tree.items() for k, v in flattened(inner, f"{name}.{key}" if name else key).items()}


def different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The items that two mappings do not share."""
    keys = {**one, **other}
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def differences_text(differences: dict[str, tuple[Any, Any]]) -> str:
    """One line a key."""
    return "\n".join(f"  {key}: {theirs} there, {ours} here" for key, (theirs, ours) in differences.items())
