"""The contract of a prior: uint8 images in, features out; its own preprocessing is part of it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Prior(nn.Module):
    """(B, 3, H, W) uint8 -> (B, feature_dim) float32, in eval mode and without gradient."""

    feature_dim: int

    def fit(self, images: Tensor) -> None:
        """Look at the train images (N, 3, H, W) uint8 first; most priors have no need to."""

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class NetworkPrior(Prior):
    """A backbone with the preprocessing that belongs to its weights: size, mean, std."""

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor, image_size: int | None = None) -> None:
        super().__init__()
        self.backbone, self.image_size = backbone, image_size
        self.feature_dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        if self.image_size and x.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.backbone((x - self.mean) / self.std)  # type: ignore[no-any-return, operator]
