"""The feature map of a prior in the place of its one vector: what extract.tokens=true extracts."""

from __future__ import annotations

import torch
from torch import Tensor

from rela_cli.priors.base import Prior


class Cells(Prior):
    """(B, 3, H, W) uint8 -> (B, g * g * D): the vectors of the cells, row by row, as one.

    grid: cells a side, at most. size: pixels a side of the images.

    Raises:
        ConfigError: the prior has no feature map.
    """

    def __init__(self, prior: Prior, grid: int, size: int) -> None:
        super().__init__()
        self.prior, self.grid = prior, grid
        with torch.no_grad():
            _, self.channels, self.side, _ = (
                prior.eval().cells(torch.zeros(1, 3, size, size, dtype=torch.uint8), grid).shape
            )
        self.count = self.side**2
        self.feature_dim = self.count * self.channels
        self.share = prior.covered(size)

    def fit(self, images: Tensor) -> None:
        self.prior.fit(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.prior.cells(images, self.grid).flatten(2).transpose(1, 2).flatten(1)

    @property
    def facts(self) -> dict[str, float]:
        """What the manifest says of the map."""
        return {"cells": self.count, "channels": self.channels, "covered": self.share}
