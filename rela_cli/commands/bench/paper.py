"""The paper's way of doing things, as plain PyTorch: what `paper` stands for among the peers. Written for this race."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rela_cli.data.batches.cache import ImageStats


def light_views(size: int, data: ImageStats) -> Callable[[Image.Image], Tensor]:
    """Phase 1's view by torchvision's transforms on a Pillow image."""
    from torchvision import transforms as T

    jitter = T.ColorJitter(0.8, 0.8, 0.8, 0.2)
    return T.Compose(  # type: ignore[no-any-return]
        [
            T.RandomResizedCrop(size, scale=(0.5, 1.0)),
            T.RandomHorizontalFlip(),
            T.RandomApply([jitter], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.ToTensor(),
            T.Normalize(data.mean.tolist(), data.std.tolist()),
        ]
    )


class OneView(Dataset[Any]):
    """One view of an image that is decoded already, or whatever else `view` gives."""

    def __init__(self, pixels: Tensor, view: Callable[[Image.Image], Any]) -> None:
        self.pixels: np.ndarray = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.view = view

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Any:
        return self.view(Image.fromarray(self.pixels[row]))


class TwoViews(OneView):
    """Two views of an image, and its row."""

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        return super().__getitem__(row), super().__getitem__(row), row


def whitened(features: Tensor, dim: int) -> Tensor:
    """(N, D) float32, all in memory -> (N, dim): centred, projected onto the principal axes, unit variance."""
    centred = features - features.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
    projected = centred @ vectors.flip(1)[:, :dim]
    variance = (projected**2).mean(0) - projected.mean(0) ** 2
    return projected / variance.sqrt()


def probe_epochs(train: Tensor, labels: Tensor, classes: int, epochs: int) -> torch.nn.Linear:
    """Adam at 3e-4, batches of 128 from a DataLoader over the features, one Python step after the other."""
    linear = torch.nn.Linear(train.shape[1], classes)
    optimizer = torch.optim.Adam(linear.parameters(), lr=3e-4)
    loader = DataLoader(TensorDataset(train, labels), batch_size=128, shuffle=True)
    for _ in range(epochs):
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(linear(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return linear
