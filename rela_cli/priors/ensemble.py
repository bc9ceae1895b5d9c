"""Several priors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.data.batches.cache import ImageStats
from rela_cli.priors.base import Prior


class Ensemble(Prior):
    """The features of several priors in a row: (B, 3, H, W) uint8 -> (B, D_1 + D_2 + ...).

    Each member sees the images in its own preprocessing. Runs extract each member for itself, so that its cache entries
    are those of the member alone; what looks at views (matching.targets=live, `rela rank`) needs all of them at once.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]], data: ImageStats, allow: Sequence[str] = ()) -> None:
        """members: trees of priors, whose files are named by their paths."""
        super().__init__()
        self.members = nn.ModuleList(instantiate(Part.from_tree(member), data=data, allow=allow) for member in members)
        self.feature_dim = sum(member.feature_dim for member in self.members)  # type: ignore[misc]

    def fit(self, images: Tensor) -> None:
        for member in self.members:
            member.fit(images)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in self.members], dim=1)
