"""Each feature by itself: mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rela_cli.transports.base import Transport
from rela_cli.transports.float32_scatter import DEAD
from rela_cli.transports.moments import Moments


class Standardize(Transport):
    """(z - mean) / deviation, over N - 1; a feature that does not vary gives exactly zero."""

    follows_device = True

    def fit(self, blocks: Iterable[Tensor]) -> None:
        moments = Moments.of(blocks, self.shared, diagonal=True)
        variance = moments.covariance
        alive = variance > DEAD * variance.max()
        self.mean, self.scale = moments.mean, torch.where(alive, variance.rsqrt(), 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) * self.scale

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "scale": self.scale}

    def facts(self) -> dict[str, object]:
        return {"dim": len(self.mean), "dead": int((self.scale == 0).sum())}
