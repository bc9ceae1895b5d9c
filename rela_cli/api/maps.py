"""Maps from features to targets, fitted or read from a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.store.files import write_atomic
from rela_cli.transports import pca
from rela_cli.transports.base import member_state

MAPPED_ROWS = 8192  # rows at a time, so that float64 copies stay small


class Map:
    """(features - mean) @ axes * scale, as far as the transport has them; float64 inside.

    `is_turned_back` for zca, which rotates the result back onto the features' own axes.
    """

    def __init__(self, state: dict[str, Tensor], is_turned_back: bool = False) -> None:
        self.state, self.is_turned_back = state, is_turned_back

    @property
    def mean(self) -> Tensor:
        """(D,) float64, of the features."""
        return self.state["mean"]

    @property
    def axes(self) -> Tensor:
        """(D, k) float64: the direction of each component."""
        return self.state["axes"]

    @property
    def scale(self) -> Tensor:
        """(k,) float64: 1 / deviation of each component, and 0 of those that hold nothing."""
        return self.state["scale"]

    @property
    def eigenvalues(self) -> Tensor:
        """(D,) float64, the largest first: the variance of the features along each axis."""
        return self.state["eigenvalues"]

    def __call__(self, features: Tensor) -> Tensor:
        """(n, D) of any float type -> (n, k) float32, on the CPU."""
        return torch.cat([self.mapped(block) for block in features.cpu().split(MAPPED_ROWS)])

    def mapped(self, features: Tensor) -> Tensor:
        """One block."""
        found = features.double()
        if "mean" in self.state:
            found = found - self.mean
        if "axes" in self.state:
            found = found @ self.axes
        if "scale" in self.state:
            found = found * self.scale
        return (found @ self.axes.T if self.is_turned_back else found).float()

    def save(self, path: str | Path) -> None:
        """As a safetensors file."""
        state = {name: tensor.contiguous() for name, tensor in self.state.items()}
        write_atomic(Path(path), lambda temporary: save_file(state, temporary), "another path")


class JoinedMap(Map):
    """The maps of the members of an ensemble, for their features in a row: (n, D_1 + D_2 + ...) -> (n, k)."""

    def __init__(self, state: dict[str, Tensor], is_turned_back: bool = False) -> None:
        super().__init__(state, is_turned_back)
        self.maps = [Map(member_state(state, number), is_turned_back) for number in range(len(state["widths"]))]

    def mapped(self, features: Tensor) -> Tensor:
        parts = features.split(self.state["widths"].tolist(), dim=1)
        found = torch.cat([one.mapped(part) for one, part in zip(self.maps, parts, strict=True)], dim=1)
        return (found[:, self.state["columns"]] * self.state["factors"]).float()


class Whitening(Map):
    """PCA whitening (ReLA-D in the paper): components of unit variance, the most important first.

    >>> features = torch.randn(1000, 8) * torch.arange(1.0, 9.0) + 3
    >>> whitening = Whitening.fit(features, max_dim=4)
    >>> targets = whitening(features)
    >>> targets.shape, bool((targets.std(0) - 1).abs().max() < 1e-5), bool(targets.mean(0).abs().max() < 1e-5)
    (torch.Size([1000, 4]), True, True)
    """

    @classmethod
    def fit(cls, features: Tensor | Iterable[Tensor], max_dim: int = 2048) -> Whitening:
        """From features (N, D), or blocks (n, D) of them; of D components the first `max_dim` are kept.

        Raises:
            ValueError: features that are no matrix, fewer than two rows, or NaN or Inf in them.
        """
        if max_dim < 1:
            raise ValueError(f"max_dim={max_dim} must be at least 1")
        fitted = pca.Whitening(max_dim)
        fitted.fit(checked_blocks(features.split(MAPPED_ROWS) if isinstance(features, Tensor) else features))
        return cls(fitted.state())

    @classmethod
    def load(cls, path: str | Path) -> Whitening:
        """What `save` wrote, or the transport.safetensors of an efficient dataset that was made by whitening."""
        return cls(load_file(path))


def checked_blocks(blocks: Iterable[Tensor]) -> Iterable[Tensor]:
    """Blocks that something can be fitted to."""
    rows = 0
    for block in blocks:
        if block.ndim != 2 or not block.isfinite().all():
            what = "NaN or Inf" if block.ndim == 2 else f"the shape {tuple(block.shape)}, not (n, D)"
            raise ValueError(f"features from row {rows} on have {what}")
        rows += len(block)
        yield block.cpu()
    if rows < 2:
        raise ValueError(f"{rows} rows of features have no variance: give at least 2")
