"""The learner's backbone: fresh, as the run's seed makes it from the learner's yaml, or as a finished run left it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from safetensors.torch import load_file
from torch import nn

from rela_cli.config import Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.parts import build
from rela_cli.streams import seeded


def build_backbone(learner: Part, seed: int) -> nn.Module:
    """A fresh backbone, the same for the same `seed` whatever else was drawn before."""
    with seeded(seed, "init", "learner"):
        return build(learner)  # type: ignore[no-any-return]


def load_backbone(folder: str | Path, network: str = "online", allow: Sequence[str] = ()) -> nn.Module:
    """The backbone of a finished run, in eval mode: (B, 3, H, W) float, normalised -> (B, feature_dim).

    `network` "target" is the target network of methods that have one; `allow` names packages besides rela whose
    classes the run's config.yaml may call.

    Raises:
        MissingError: the folder is not a run, or has no such network. ConfigError: a class from elsewhere.
    """
    folder = Path(folder)
    weights = folder / ("backbone.safetensors" if network == "online" else f"backbone_{network}.safetensors")
    if not weights.is_file():
        raise MissingError(f"{weights} does not exist; a finished run's folder has one")
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    learner = Part.from_tree(tree["learner"])
    if foreign := learner.foreign((*allow, "rela_cli")):
        raise ConfigError(f"{folder}/config.yaml wants to run {foreign[0]}; if you trust it, allow its package")
    backbone = build_backbone(learner, tree["seed"])
    backbone.load_state_dict(load_file(weights))
    return backbone.eval()


def feature_dim(backbone: nn.Module) -> int:
    """Width D of a backbone's representation (B, D)."""
    return int(backbone.feature_dim)  # type: ignore[arg-type]
