"""Where the settings of two runs differ, key by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rela_cli.config.identity import identity_of

RUNTIME = {"gradient_hook": "none", "norm": "global", "extract_precision": "fp32", "read_every_steps": None}


def flattened(tree: Any, name: str = "") -> dict[str, Any]:
    """A tree of mappings as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {k: v for key, inner in tree.items() for k, v in flattened(inner, f"{name}.{key}" if name else key).items()}


def settings_of(tree: dict[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Of a run's config what changes a backbone: some groups, and single keys that count where they are no defaults."""
    runtime = tree.get("runtime", {})
    single = {"accumulate": tree.get("accumulate", 1), "runtime": {k: runtime.get(k, v) for k, v in RUNTIME.items()}}
    return flattened({**{group: identity_of(tree.get(group, {}), group) for group in groups}, **single})


def different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The items that two mappings do not share."""
    keys = {**one, **other}
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def differences_text(differences: dict[str, tuple[Any, Any]]) -> str:
    """One line a key."""
    return "\n".join(f"  {key}: {theirs} there, {ours} here" for key, (theirs, ours) in differences.items())
