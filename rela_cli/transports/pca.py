"""PCA, PCA whitening (ReLA-D in the paper) and what lies between, from a streaming covariance."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rela_cli.config.schema import ALL, LEARNER, TWICE
from rela_cli.store.notices import warn
from rela_cli.transports.base import Transport
from rela_cli.transports.float32_scatter import DEAD, Buffer
from rela_cli.transports.moments import Moments

STEEP = 1e-4  # of the largest eigenvalue: weaker components are mapped in float64, so float32 errs by about 1e-5


class PCA(Transport):
    """Centre and rotate onto the principal axes, largest first; the sign makes each axis' largest entry positive.

    Component i is multiplied by eigenvalue_i^(-power / 2), so its deviation is eigenvalue_i^((1 - power) / 2):

    - power 0: no scaling, this class. Strong components count most.
    - power 1: every deviation is 1, `Whitening`. All components count the same.
    - between: weak components count less than strong ones, but more than in PCA. 0.5 is eigenvalue^(-1/4).

    dims says how many components there are, the strongest first: "learner" keeps up to `max_dim` of them and each
    learner takes as many as it has features; with "twice" it takes twice as many; "all" gives every learner all that
    are kept; a number gives it that many. The transfer layer is linear from feature_dim to any number.

    center False leaves the mean in the targets: axes and scales stay those of the covariance around the mean.
    """

    power = 0.0
    follows_device = True

    def __init__(self, max_dim: int, dims: int | str = LEARNER, center: bool = True) -> None:
        self.number = dims if isinstance(dims, int) else None
        self.max_dim, self.ordered = self.number or max_dim, dims in (LEARNER, TWICE)
        self.per_feature = 2 if dims == TWICE else 1
        self.center, self.room = center, Buffer()

    def fit(self, blocks: Iterable[Tensor]) -> None:
        moments = Moments.of(blocks, self.shared, keep=self.max_dim)
        values, vectors = torch.linalg.eigh(moments.covariance)
        mean, self.values = moments.mean, values.flip(0).clamp(min=0)
        self.mean = mean if self.center else torch.zeros_like(mean)
        axes = vectors.flip(1)[:, : self.max_dim]
        if self.number and axes.shape[1] < self.number:
            warn(f"transport.dims={self.number}, but the prior has {axes.shape[1]} features: there are no more targets")
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        self.axes = axes * largest.sign()
        self.scale = self.component_scale(self.values[: self.max_dim])
        self.light = int((self.values[: axes.shape[1]] > STEEP * self.values[0]).sum())
        self.single = self.light_map()

    def component_scale(self, values: Tensor) -> Tensor:
        """eigenvalue^(-power / 2), and exactly 0 for dead components whatever the power."""
        alive = values > DEAD * values[0]
        return torch.where(alive, values.rsqrt() ** self.power, 0.0)

    def light_map(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (D,), map (D, light) of the first components, and what rounding the mean costs (light,): float32."""
        mean, axes = self.mean.float(), (self.axes * self.scale)[:, : self.light]
        return mean, axes.float(), ((mean.double() - self.mean) @ axes).float()

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) @ self.axes * self.scale

    def rounded(self, features: Tensor) -> Tensor:
        """Components whose scale does not magnify rounding are mapped in float32: (N, k) float32."""
        if features.dtype is torch.float64 or features.is_cuda:
            return self(features).float()
        mean, axes, moved = self.single
        y = torch.addmm(moved, self.room.float32(features).sub_(mean), axes)
        return torch.cat((y, self.tail(features)), dim=1) if self.light < self.axes.shape[1] else y

    def tail(self, features: Tensor) -> Tensor:
        """The other components, by way of float64: (N, k - light) float32."""
        return ((features.double() - self.mean) @ self.axes[:, self.light :] * self.scale[self.light :]).float()

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
    """PCA with every kept component scaled to unit variance; with a power below 1, only part of the way there."""

    def __init__(self, max_dim: int, power: float = 1.0, dims: int | str = LEARNER, center: bool = True) -> None:
        super().__init__(max_dim, dims, center)
        self.power = power


class ZCA(Whitening):
    """Whitening turned back to the features' own axes, so that they move as little as can be (Kessy et al. 2018).

    Every coordinate is as good as any other, so a learner cannot take the first few: it is matched to all D_p.
    """

    def __init__(self) -> None:
        super().__init__(max_dim=2**31, dims=ALL)

    def __call__(self, features: Tensor) -> Tensor:
        return super().__call__(features) @ self.axes.T

    def rounded(self, features: Tensor) -> Tensor:
        return Transport.rounded(self, features)
