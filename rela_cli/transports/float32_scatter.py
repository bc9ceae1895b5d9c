"""The scatter of a block in float32 products, as good as whitening needs it.

Whitening divides by small eigenvalues, and the rounding of float32 products is a share of the *largest* one. So the
largest few directions are taken out first (deflation) and put back in float64: what is left to round is small. Where
even that leaves a component that is to be kept too uncertain, nothing is done in float32 at all.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from rela_cli.numerics.gram import add_gram

ROUNDING = 5e-8  # of the largest eigenvalue, in eigenvalues, by float32 products of ROWS (measured: 1e-8 to 7e-8)
TOLERATED = 1e-3  # of the weakest kept eigenvalue: 0.0005 in its targets, as much as storing them in fp16 does
ENOUGH_ROWS = 4  # for each dimension, before a spectrum is believed
DIRECTIONS = (0, 16, 32, 64, 128)  # directions to take out: 64 of 1,024 cost an eighth more
PRODUCT_ROWS = 2048  # to multiply before the sum goes on in float64
DEAD = 1e-10  # a component below this share of the largest eigenvalue carries rounding noise, not data


class Buffer(threading.local):
    """Memory for float32 copies that is kept between calls: allocating it costs more than filling it.

    Every thread has its own.
    """

    def __init__(self) -> None:
        self.memory = torch.empty(0)

    def float32(self, block: Tensor) -> Tensor:
        """A copy that stands until the next one is asked for."""
        if self.memory.shape[1:] != block.shape[1:] or len(self.memory) < len(block):
            self.memory = torch.empty(block.shape)
        return self.memory[: len(block)].copy_(block)


class DeflatedScatter:
    """(n, D) -> mean (D,) and scatter (D, D), float64, from float32 products around `pivot` without `top`.

    Only the upper triangle of `scatter` is written; pass a matrix of zeros.
    top: (D, r) orthonormal directions, the largest of the features, r >= 0.
    """

    def __init__(self, pivot: Tensor, top: Tensor) -> None:
        self.pivot, self.top, self.room = pivot.float(), top.float(), Buffer()

    @classmethod
    def where_enough(cls, mean: Tensor, covariance: Tensor, rows: int, keep: int) -> DeflatedScatter | None:
        """With as few directions taken out as do, by the spectrum of the first `rows`; None where none do."""
        if rows < ENOUGH_ROWS * len(covariance):
            return None
        values, vectors = (found.flip(-1) for found in torch.linalg.eigh(covariance.cpu()))
        alive = values[:keep][values[:keep] > DEAD * values[0]]
        for taken in DIRECTIONS:
            if len(alive) > taken and ROUNDING * values[taken] <= TOLERATED * alive[-1]:
                return cls(mean, vectors[:, :taken])
        return None

    def __call__(self, block: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        width, taken = self.top.shape
        across, within = torch.zeros(taken, width), torch.zeros(taken, taken)
        gaps = []
        for rows in block.split(PRODUCT_ROWS):  # which stay in the processor's cache from one step to the next
            rest = self.room.float32(rows).sub_(self.pivot)
            gaps.append(rest.mean(0))
            rest -= gaps[-1]
            part = rest @ self.top
            rest.addmm_(part, self.top.T, alpha=-1)
            add_gram(scatter, rest)
            across += part.T @ rest
            within += part.T @ part
        if taken:
            self.put_back(scatter, across.double(), within.double())
        return self.merged(block, torch.stack(gaps).double(), scatter)

    def put_back(self, scatter: Tensor, across: Tensor, within: Tensor) -> None:
        """Add what was taken out: (D, D), (r, D), (r, r)."""
        top = self.top.double()
        mixed = top @ (across + 0.5 * within @ top.T)
        scatter += mixed
        scatter += mixed.T

    def merged(self, block: Tensor, gaps: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the block, and its scatter around that, from those of its pieces around their own means."""
        counts = torch.tensor([len(rows) for rows in block.split(PRODUCT_ROWS)], dtype=torch.float64)[:, None]
        gap = (gaps * counts).sum(0) / counts.sum()
        apart = (gaps - gap) * counts.sqrt()
        return self.pivot.double() + gap, scatter.addmm_(apart.T, apart)
