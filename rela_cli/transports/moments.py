"""Mean and covariance of a stream of features."""

from __future__ import annotations

import torch
from torch import Tensor

from rela_cli import ranks
from rela_cli.transports.single import Deflated


class Moments:
    """Mean and covariance, merged block by block (Chan, Golub and LeVeque 1979), so memory does not grow with N.

    `diagonal` keeps the variances alone: memory D instead of D x D. `keep` says that the first so many principal
    components are all that matters: from the second block on, features that are no float64 may then be multiplied in
    float32, where the first block shows that all of these components are known well enough so (`single.py`).
    """

    def __init__(self, diagonal: bool = False, keep: int = 0) -> None:
        self.n, self.diagonal, self.keep = 0, diagonal, keep
        self.mean = torch.zeros(1, dtype=torch.float64)
        self.scatter = torch.zeros(1, dtype=torch.float64)  # its upper triangle counts
        self.single: Deflated | None = None

    def add(self, block: Tensor) -> None:
        """(n, D) of any float type."""
        light = self.single is not None and block.dtype is not torch.float64
        mean, own = self.single(block) if self.single and light else self.exact(block)
        first, gap, n = self.n == 0, mean - self.mean, self.n + len(block)
        weight = self.n * len(block) / n
        own = own.add_(gap.square(), alpha=weight) if self.diagonal else own.addr_(gap, gap, alpha=weight)
        self.scatter = own if first else self.scatter.add_(own)  # in place: D x D is 8 MB and more
        self.mean, self.n = self.mean + gap * (len(block) / n), n
        if first and self.keep and block.dtype is not torch.float64:
            self.single = Deflated.where_enough(self.mean, self.covariance, self.n, self.keep)

    def exact(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scatter of one block, float64."""
        block = block.double()
        mean = block.mean(0)
        centred = block - mean
        return mean, centred.square().sum(0) if self.diagonal else centred.T @ centred

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
        scatter = self.scatter if self.scatter.ndim < 2 else self.scatter.triu() + self.scatter.triu(1).T
        return scatter / max(1, self.n - 1)
