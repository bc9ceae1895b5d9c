"""The learner's backbone as it is before any training: what the run's seed makes of the learner's yaml."""

from __future__ import annotations

from torch import nn

from rela_cli.config import Part
from rela_cli.parts import build
from rela_cli.streams import seeded


def build_backbone(learner: Part, seed: int) -> nn.Module:
    """A fresh backbone, the same for the same `seed` whatever else was drawn before."""
    with seeded(seed, "init", "learner"):
        return build(learner)  # type: ignore[no-any-return]


def feature_dim(backbone: nn.Module) -> int:
    """Width D of a backbone's representation (B, D)."""
    return int(backbone.feature_dim)  # type: ignore[arg-type]
