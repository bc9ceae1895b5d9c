"""A Gaussian random projection: distances survive (Johnson and Lindenstrauss 1984), and only the mean is fitted."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rela_cli.numerics.randomness import torch_seed
from rela_cli.transports.base import Transport
from rela_cli.transports.moments import Moments


class RandomProjection(Transport):
    """(z - mean) R with entries of R from N(0, 1 / D_p).

    `ordered`, because the first few columns of a random projection are a random projection too.
    """

    ordered = follows_device = True

    def __init__(self, max_dim: int, seed: int) -> None:
        self.max_dim, self.seed = max_dim, seed

    def fit(self, blocks: Iterable[Tensor]) -> None:
        moments = Moments.of(blocks, self.shared, diagonal=True)
        self.mean, width = moments.mean, len(moments.mean)
        with torch_seed(self.seed, "random projection"):
            axes = torch.randn(self.max_dim, width, dtype=torch.float64).T / width**0.5
        self.axes = axes.to(self.mean.device)

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) @ self.axes

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "axes": self.axes.contiguous()}

    def facts(self) -> dict[str, object]:
        return {"dim": self.axes.shape[1], "dead": 0}
