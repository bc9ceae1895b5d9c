"""PCA and PCA whitening from a streaming float64 covariance (ReLA-D in the paper)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rela_cli.transports.base import Transport
from rela_cli.transports.moments import Moments

DEAD = 1e-10  # a component below this share of the largest eigenvalue carries rounding noise, not data


class PCA(Transport):
    """Centre and rotate onto the principal axes, largest first; the sign makes each axis' largest entry positive."""

    ordered = True
    whiten = False

    def __init__(self, max_dim: int) -> None:
        self.max_dim = max_dim

    def fit(self, blocks: Iterable[Tensor]) -> None:
        moments = Moments()
        for block in blocks:
            moments.add(block)
        if self.shared:
            moments.pool()
        values, vectors = torch.linalg.eigh(moments.covariance.cpu())
        self.mean, self.values = moments.mean.cpu(), values.flip(0).clamp(min=0)
        axes = vectors.flip(1)[:, : self.max_dim]
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        self.axes = axes * largest.sign()
        self.scale = self.component_scale(self.values[: self.max_dim])

    def component_scale(self, values: Tensor) -> Tensor:
        """1 for PCA, 1/deviation for whitening, and exactly 0 for dead components in both."""
        alive = values > DEAD * values[0]
        return torch.where(alive, values.rsqrt() if self.whiten else torch.ones_like(values), 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) @ self.axes * self.scale

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "axes": self.axes.contiguous(), "scale": self.scale, "eigenvalues": self.values}

    def facts(self) -> dict[str, object]:
        total = self.values.sum().clamp(min=1e-300)
        share = (self.values.cumsum(0) / total)[: self.max_dim]
        marks = {str(k): round(share[k - 1].item(), 6) for k in (16, 64, 256, 512, 1024, 2048) if k <= len(share)}
        return {
            "dim": self.axes.shape[1],
            "dead": int((self.scale == 0).sum()),
            "explained_variance": {**marks, str(len(share)): round(share[-1].item(), 6)},
        }


class Whitening(PCA):
    """PCA with every kept component scaled to unit variance."""

    whiten = True


class ZCA(Whitening):
    """Whitening turned back to the features' own axes, so that they move as little as can be (Kessy et al. 2018).

    Every coordinate is as good as any other, so a learner cannot take the first few: it is matched to all D_p.
    """

    ordered = False

    def __init__(self) -> None:
        super().__init__(max_dim=2**31)

    def __call__(self, features: Tensor) -> Tensor:
        return super().__call__(features) @ self.axes.T
