"""Where the settings of two runs differ, key by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rela_cli.config.identity import flattened, identity_of

RUNTIME = {"gradient_hook": "none", "norm": "global", "extract_precision": "fp32", "read_every_steps": None}
RUN_SETTINGS = ("dataset", "prior", "learner", "method", "optimizer", "budget", "epochs", "batch_size", "seed")
MATCHING = ("transport", "matching", "switch", "extract")  # of these none counts for the plain method
Sides = tuple[dict[str, Any], dict[str, Any]]  # the config of a run as a tree, and the entries that it is made of


def changed_settings(theirs: Sides, ours: Sides) -> dict[str, tuple[Any, Any]]:
    """What changes a backbone and differs: settings, else inputs where the data or the weights hold something else."""
    pairs = [settings_of(tree, RUN_SETTINGS + MATCHING) for tree, _ in (theirs, ours)]
    inputs = [{f"inputs.{kind}": name for kind, name in found.items()} for _, found in (theirs, ours)]
    return different(*pairs) or different(*inputs) or {"version of the stages": ("another", "this")}


def settings_of(tree: dict[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Of a run's config what changes a backbone: some groups, and single keys that count where they are no defaults."""
    runtime = tree.get("runtime", {})
    single = {"accumulate": tree.get("accumulate", 1), "runtime": {k: runtime.get(k, v) for k, v in RUNTIME.items()}}
    return dict(flattened({**{group: identity_of(tree.get(group, {}), group) for group in groups}, **single}))


def different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The items that two mappings do not share."""
    keys = {**one, **other}
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def differences_text(differences: dict[str, tuple[Any, Any]]) -> str:
    """One line a key."""
    return "\n".join(f"  {key}: {theirs} there, {ours} here" for key, (theirs, ours) in differences.items())
