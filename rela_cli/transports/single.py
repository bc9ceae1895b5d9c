"""The scatter of a block in float32 products, as good as whitening needs it.

Whitening divides by small eigenvalues, and the rounding of float32 products is a share of the *largest* one. So the
largest few directions are taken out first (deflation) and put back in float64: what is left to round is small. Where
even that leaves a component that is to be kept too uncertain, nothing is done in float32 at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 5e-8  # of the largest eigenvalue, in eigenvalues, by float32 products of ROWS (measured: 1e-8 to 7e-8)
BEARABLE = 1e-3  # of the weakest kept eigenvalue: 0.0005 in its targets, as much as storing them in fp16 does
ENOUGH_ROWS = 4  # for each dimension, before a spectrum is believed
TAKEN = (0, 16, 32, 64, 128)  # directions to take out: 64 of 1,024 cost an eighth more
ROWS = 2048  # to multiply before the sum goes on in float64
COLUMNS = 128  # of a product: what lies below the diagonal is not computed, which saves 7 of 16 of 1,024
DEAD = 1e-10  # a component below this share of the largest eigenvalue carries rounding noise, not data


class Room:
    """Memory for float32 copies of blocks, kept from one to the next: to ask for it anew costs more than to fill it."""

    def __init__(self) -> None:
        self.memory = torch.empty(0)

    def float32(self, block: Tensor) -> Tensor:
        """A copy that stands until the next one is asked for."""
        if self.memory.shape[1:] != block.shape[1:] or len(self.memory) < len(block):
            self.memory = torch.empty(block.shape)
        return self.memory[: len(block)].copy_(block)


class Deflated:
    """(n, D) -> mean (D,) and scatter (D, D), float64, from float32 products around `pivot` without `top`.

    Of the scatter the upper triangle is meant. top: (D, r) orthonormal directions, the largest of the features, r >= 0.
    """

    def __init__(self, pivot: Tensor, top: Tensor) -> None:
        self.pivot, self.top, self.room = pivot.float(), top.float(), Room()

    @classmethod
    def where_enough(cls, mean: Tensor, covariance: Tensor, rows: int, keep: int) -> Deflated | None:
        """With as few directions taken out as do, by the spectrum of the first `rows`; None where none do."""
        if rows < ENOUGH_ROWS * len(covariance):
            return None
        values = torch.linalg.eigvalsh(covariance.cpu()).flip(0)
        alive = values[:keep][values[:keep] > DEAD * values[0]]
        for taken in TAKEN:
            if len(alive) > taken and ROUNDING * values[taken] <= BEARABLE * alive[-1]:
                vectors = torch.linalg.eigh(covariance.cpu()).eigenvectors.flip(1) if taken else covariance
                return cls(mean, vectors[:, :taken])
        return None

    def __call__(self, block: Tensor) -> tuple[Tensor, Tensor]:
        centred = self.room.float32(block).sub_(self.pivot)
        gap = centred.mean(0)
        centred -= gap
        part = centred @ self.top
        rest = centred.sub_(part @ self.top.T) if part.shape[1] else centred
        scatter = gram(rest)
        if part.shape[1]:
            top, across = self.top.double(), (part.T @ rest).double()
            mixed = top @ across
            scatter += mixed + mixed.T + top @ (part.T @ part).double() @ top.T
        return self.pivot.double() + gap.double(), scatter


def gram(x: Tensor) -> Tensor:
    """x'x of (n, D) float32, summed over blocks of rows in float64; what lies below the panels' diagonal stays 0."""
    width = x.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    for rows in x.split(ROWS):
        for start in range(0, width, COLUMNS):
            total[start : start + COLUMNS, start:] += rows[:, start : start + COLUMNS].T @ rows[:, start:]
    return total
