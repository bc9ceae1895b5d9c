"""Random whitened patches as a one-layer convolution (Coates, Lee and Ng 2011; Coates and Ng 2011)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.data.batches.cache import ImageStats
from rela_cli.errors import ConfigError
from rela_cli.numerics.randomness import random_words, stream_key
from rela_cli.priors.base import Prior, reduced

SAMPLES = 100_000  # patches that the whitening is estimated from
EPSILON = 0.1  # added to eigenvalues of contrast-normalised patches, as in the paper


class Patches(Prior):
    """Filters are whitened patches of the dataset itself; two-sided ReLU; average over a pool x pool grid."""

    weight: Tensor
    bias: Tensor

    def __init__(self, patches: int, patch_size: int, pool: int, seed: int, data: ImageStats) -> None:
        super().__init__()
        if patch_size > data.size:
            raise ConfigError(f"prior.patch_size={patch_size} is larger than the images, {data.size} px")
        self.patches, self.patch_size, self.pool, self.seed = patches, patch_size, pool, seed
        self.feature_dim = 2 * patches * pool * pool
        self.register_buffer("weight", torch.zeros(patches, 3, patch_size, patch_size))
        self.register_buffer("bias", torch.zeros(patches))

    def fit(self, images: Tensor) -> None:
        """Draw patches, whiten them, keep some as filters; a filter's response is a whitened inner product."""
        patches = contrast_normalised(self.draw(images))  # (SAMPLES, 3 * p * p) float64
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        whiten = vectors @ torch.diag((values.clamp(min=0) + EPSILON).rsqrt()) @ vectors.T
        filters = F.normalize((patches[: self.patches] - mean) @ whiten, dim=1) @ whiten
        self.weight.copy_(filters.view_as(self.weight))
        self.bias.copy_(-(filters @ mean))

    def draw(self, images: Tensor) -> Tensor:
        """(SAMPLES, 3 * p * p) float64 in [0, 1], at places given by the prior's own seed."""
        n, p, size = len(images), self.patch_size, images.shape[-1]
        place = random_words(stream_key(self.seed, "patches"), torch.arange(SAMPLES), 3)
        which, top, left = place[:, 0] % n, place[:, 1] % (size - p + 1), place[:, 2] % (size - p + 1)
        rows = (top[:, None] + torch.arange(p))[:, None, :, None]
        columns = (left[:, None] + torch.arange(p))[:, None, None, :]
        channels = torch.arange(3)[None, :, None, None]
        return images[which[:, None, None, None], channels, rows, columns].flatten(1).double() / 255

    def forward(self, images: Tensor) -> Tensor:
        response = self.responses(images)
        # one side after the other, in place: at 64 px the responses of 256 images take 0.9 GB
        positive = F.adaptive_avg_pool2d(response.relu(), self.pool)
        negative = F.adaptive_avg_pool2d(response.neg_().relu_(), self.pool)
        return torch.cat((positive, negative), dim=1).flatten(1)

    def responses(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, patches, S', S'), for each place where a patch fits: S' = S - patch_size + 1."""
        x = images.float() / 255
        scale = x.std((1, 2, 3), keepdim=True) + 0.01
        return F.conv2d((x - x.mean((1, 2, 3), keepdim=True)) / scale, self.weight, self.bias)

    def cells(self, images: Tensor, grid: int) -> Tensor:
        response = self.responses(images)
        positive = reduced(response.relu(), grid)
        return torch.cat((positive, reduced(response.neg_().relu_(), grid)), dim=1)

    def covered(self, size: int) -> float:
        return (size - self.patch_size + 1) / size


def contrast_normalised(patches: Tensor) -> Tensor:
    """Each patch with its mean taken out and divided by its deviation; 10 grey levels squared keep flat ones calm."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred / (centred.var(1, keepdim=True) + 10 / 255**2).sqrt()
