"""How settings stand in fingerprints and results: without cards, modules, and keys that change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LATER: dict[str, dict[str, Any]] = {  # keys younger than the artifacts on disks, at what was done before them: no
    # identity has them, so that older artifacts keep their names; by class, or by group where a group names no class
    "matching": {"targets": "cached", "token_weight": 0.5},
    "extract": {"views": 1, "tokens": False, "token_grid": 7},
    "ImageFolder": {"labels": None, "test_share": 0.2},
    "Adaptive": {"moments": "keep", "warmup_epochs": 0.0},
    "Fixed": {"moments": "keep", "warmup_epochs": 0.0},
    "BYOL": {"loss": "squared_distance"},
    "DINO": {"temperature_by": "step", "projector_layers": 3, "teacher_head": "copy"},
    "PCA": {"dims": "learner", "center": True},
    "Whitening": {"power": 1.0, "dims": "learner", "center": True},
}


def without_idle(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's tree without keys that say how something is done that is not done."""
    if not tree["extract"]["tokens"]:
        del tree["extract"]["token_grid"], tree["matching"]["token_weight"]
    return tree


def class_name(target: str) -> str:
    """How an identity names a class: ours by its own name, unique in its group; anyone else's by its whole path."""
    return target.rpartition(".")[2] if target.startswith("rela_cli.") else target


def identity_of(tree: Any, group: str = "") -> Any:
    """A group as identities and results hold it: at any depth without cards, and our classes without their modules."""
    if isinstance(tree, list | tuple):
        return [identity_of(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    name = class_name(tree["_target_"]) if isinstance(tree.get("_target_"), str) else ""
    kept = {key: value for key, value in tree.items() if key not in ("card", "_target_")}
    own = {"class": name} if name else {}
    return own | {key: identity_of(value, key) for key, value in without_later(name or group, kept).items()}


def without_later(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options but for those `LATER` ones that say what was done before there was such a key."""
    before = LATER.get(name, {})
    return {key: value for key, value in options.items() if key not in before or value != before[key]}


def flattened(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
