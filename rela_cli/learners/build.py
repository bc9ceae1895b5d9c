"""The learner's backbone as it is before any training: what the run's seed makes of the learner's yaml."""

from __future__ import annotations

from torch import nn

from rela_cli.config import Config
from rela_cli.parts import build
from rela_cli.streams import seeded


def build_backbone(config: Config) -> nn.Module:
    """A fresh backbone, the same for the same `seed` whatever else was drawn before."""
    with seeded(config.seed, "init", "learner"):
        return build(config.learner)  # type: ignore[no-any-return]
