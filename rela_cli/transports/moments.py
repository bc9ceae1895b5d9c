"""Mean and covariance of a stream of features."""

from __future__ import annotations

import torch
from torch import Tensor

from rela_cli import ranks


class Moments:
    """Mean and covariance, merged block by block (Chan, Golub and LeVeque 1979), so memory does not grow with N.

    `diagonal` keeps the variances alone: memory D instead of D x D.
    """

    def __init__(self, diagonal: bool = False) -> None:
        self.n, self.diagonal = 0, diagonal
        self.mean = torch.zeros(1, dtype=torch.float64)
        self.scatter = torch.zeros(1, dtype=torch.float64)

    def add(self, block: Tensor) -> None:
        """(n, D) of any float type."""
        block = block.double()
        mean = block.mean(0)
        centred = block - mean
        gap, n = mean - self.mean, self.n + len(block)
        own = centred.square().sum(0) if self.diagonal else centred.T @ centred
        between = gap.square() if self.diagonal else torch.outer(gap, gap)
        self.scatter = self.scatter + own + between * (self.n * len(block) / n)
        self.mean, self.n = self.mean + gap * (len(block) / n), n

    def pool(self) -> None:
        """Take in what the other ranks have seen; each has seen something."""
        count = torch.tensor(float(self.n), dtype=torch.float64)
        total = ranks.sum_over(count)
        mean = ranks.sum_over(self.mean * count) / total
        gap = self.mean - mean
        between = gap.square() if self.diagonal else torch.outer(gap, gap)
        self.scatter = ranks.sum_over(self.scatter + between * count)
        self.mean, self.n = mean, round(float(total))

    @property
    def covariance(self) -> Tensor:
        """(D, D), or (D,) of a diagonal, over N - 1."""
        return self.scatter / max(1, self.n - 1)
