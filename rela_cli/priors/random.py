"""Priors that were never trained: what architecture alone knows."""

from __future__ import annotations

from typing import Any

from rela_cli.config.schema import Part
from rela_cli.data.batches.cache import ImageStats
from rela_cli.learners.build import build_backbone
from rela_cli.learners.resnet import resnet18
from rela_cli.numerics.randomness import torch_seed
from rela_cli.priors.base import NetworkPrior, Preprocess


class RandomResNet(NetworkPrior):
    """A ResNet-18 of its own with CIFAR stem: 8 * width features."""

    def __init__(self, width: int, seed: int, data: ImageStats) -> None:
        with torch_seed(seed, "prior"):
            backbone = resnet18("cifar", width)
        super().__init__(backbone, Preprocess(None, data.mean.tolist(), data.std.tolist()))


class RandomLearner(NetworkPrior):
    """The untrained learner itself, the paper's 'random' column; with seed 0 the very weights of run seed 0."""

    def __init__(self, learner: dict[str, Any], seed: int, data: ImageStats) -> None:
        backbone = build_backbone(Part.from_tree(learner), seed, data.size)
        super().__init__(backbone, Preprocess(None, data.mean.tolist(), data.std.tolist()))
