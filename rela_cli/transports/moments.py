"""Mean and covariance of a stream of features, on the device that its blocks lie on.

A GPU multiplies in float64 throughout; the way by float32 is for the processor, which is slow at that.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rela_cli.distributed import ranks
from rela_cli.numerics.gram import add_gram, mirrored
from rela_cli.numerics.side_by_side import WORKERS, map_blocks
from rela_cli.transports.float32_scatter import PRODUCT_ROWS, DeflatedScatter

WIDE_FEATURES = 2048  # features: wider ones fill all threads with one block, and several scatters would fill the memory


class Moments:
    """Mean and covariance, merged block by block (Chan, Golub and LeVeque 1979), so memory does not grow with N.

    `diagonal` keeps the variances alone: memory D instead of D x D. `keep` says that the first so many principal
    components are all that matters: from the second block on, features that are no float64 may then be multiplied in
    float32, where the first block shows that all of these components are known well enough so (`float32_scatter.py`).
    """

    def __init__(self, diagonal: bool = False, keep: int = 0) -> None:
        self.n, self.diagonal, self.keep = 0, diagonal, keep
        self.mean = self.scatter = torch.zeros(1, dtype=torch.float64)  # of the scatter the upper triangle counts
        self.single: DeflatedScatter | None = None
        self.spare: list[Tensor] = []  # scatters of blocks that were taken in, to be filled anew

    @classmethod
    def of(cls, blocks: Iterable[Tensor], is_shared: bool, diagonal: bool = False, keep: int = 0) -> Moments:
        """Those of all blocks; where they are shared, of those of all ranks."""
        moments = cls(diagonal, keep)
        moments.add_all(blocks)
        if is_shared:
            moments.pool()
        return moments

    def add_all(self, blocks: Iterable[Tensor]) -> None:
        """Add blocks (n, D). Those of float64, and all before `single` is known, are multiplied in float64."""
        rest = iter(blocks)
        first = next(rest)
        self.add(first)
        if first.is_cuda:
            for block in rest:
                self.add(block)
            return
        for part in map_blocks(self.part, rest, WORKERS if first.shape[1] <= WIDE_FEATURES else 1):
            self.merge(*part)

    def add(self, block: Tensor) -> None:
        """(n, D) of any float type."""
        self.merge(*self.part(block))
        if self.n == len(block) and self.keep and block.dtype is not torch.float64 and not block.is_cuda:
            self.single = DeflatedScatter.where_enough(self.mean, self.covariance, self.n, self.keep)

    def part(self, block: Tensor) -> tuple[int, Tensor, Tensor]:
        """Rows, mean and scatter of one block."""
        single = None if block.dtype is torch.float64 else self.single
        return len(block), *(single(block, self.empty(block)) if single else self.exact(block))

    def merge(self, count: int, mean: Tensor, own: Tensor) -> None:
        """Take in one block's."""
        if not self.n:
            self.mean = torch.zeros_like(mean)
        gap, n = mean - self.mean, self.n + count
        weight = self.n * count / n
        own = own.add_(gap.square(), alpha=weight) if self.diagonal else own.addr_(gap, gap, alpha=weight)
        if not self.n:
            self.scatter = own
        else:
            self.scatter += own  # in place: D x D is 8 MB and more
            self.spare += [] if self.diagonal else [own]
        self.mean, self.n = self.mean + gap * (count / n), n

    def empty(self, block: Tensor) -> Tensor:
        """(D, D) of zeros; used again, since what many threads ask for and free leaves ever more holes."""
        try:
            return self.spare.pop().zero_()
        except IndexError:
            return torch.zeros(block.shape[1], block.shape[1], dtype=torch.float64, device=block.device)

    def exact(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scatter of one block, float64: in one piece, since memory for small ones is not given back."""
        block = block.double()
        mean = block.mean(0)
        centred = block - mean
        if self.diagonal:
            return mean, centred.square().sum(0)
        scatter = self.empty(block)
        for rows in centred.split(PRODUCT_ROWS):
            add_gram(scatter, rows)
        return mean, scatter

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
        scatter = self.scatter if self.diagonal else mirrored(self.scatter)
        return scatter / max(1, self.n - 1)
