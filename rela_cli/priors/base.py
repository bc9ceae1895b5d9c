"""The contract of a prior: uint8 images in, features out; its own preprocessing is part of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import INTERPOLATIONS
from rela_cli.errors import ConfigError
from rela_cli.learners.build import measured_width, refused
from rela_cli.learners.maps import feature_map
from rela_cli.priors.pooling import Pooled, vectors
from rela_cli.store.notices import warn_once


class Prior(nn.Module):
    """(B, 3, H, W) uint8 -> (B, feature_dim) float32, in eval mode and without gradient."""

    feature_dim: int

    def fit(self, images: Tensor) -> None:
        """Look at the train images (N, 3, H, W) uint8 first; most priors have no need to."""

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def cells(self, images: Tensor, grid: int) -> Tensor:
        """The map behind the features, at most `grid` cells a side: (B, 3, H, W) uint8 -> (B, D, g, g) float32.

        Raises:
            ConfigError: the prior has none.
        """
        raise ConfigError(f"{type(self).__name__} gives one vector an image and no map")

    def covered(self, size: int) -> float:
        """Share of a side of images of `size` px that the map is of, in the middle."""
        return 1.0


@dataclass(frozen=True)
class Preprocess:
    """What belongs to a network's weights as much as the weights do: size, interpolation, mean, std.

    Square images are resized so that the middle `crop` of them, as a share of a side, is `image_size` pixels; that
    middle is kept, scaled to [0, 1] and normalised. An `image_size` of None leaves the images as they are. A `crop`
    above 1, as some cards have it, puts a black frame around the whole image. `channels` is the order that the network
    wants, rgb or bgr, in which mean and std stand. For numbers from 0 to 255 std is 1/255.
    """

    image_size: int | None
    mean: Sequence[float]
    std: Sequence[float]
    crop: float = 1.0
    interpolation: str = "bicubic"
    channels: str = "rgb"

    def __post_init__(self) -> None:
        """What a library's card says is checked as what a user says is.

        Raises:
            ConfigError: it cannot be done.
        """
        size, channels = self.image_size, (len(self.mean), len(self.std))
        wrong = {
            "image_size": size is not None and size < 1,
            "mean and std": channels != (3, 3) or min(self.std) <= 0,
            "crop": self.crop <= 0,
            "interpolation": self.interpolation not in INTERPOLATIONS,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ConfigError(f"the prior's {name} cannot be used: {self}. Say another prior.{name.split()[0]}=")

    def instead(self, **asked: object) -> Preprocess:
        """A copy with the values that a user asked for; None keeps the value that is there."""
        return replace(self, **{key: value for key, value in asked.items() if value is not None})  # type: ignore[arg-type]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, 3, image_size, image_size) float32."""
        size = self.image_size or images.shape[-1]
        pixels = middle(resize(images, int(size / self.crop + 1e-6), self.interpolation), size)
        pixels = pixels.flip(1) if self.channels == "bgr" else pixels
        mean, std = self.constants(images.device)
        return (pixels / 255 - mean) / std

    def covered(self, size: int) -> float:
        """Share of a side of images of `size` px that is kept, in the middle; above 1 with a frame around them."""
        kept = self.image_size or size
        return kept / int(kept / self.crop + 1e-6)

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std (1, 3, 1, 1); on a GPU made once, since it is waited for when a tensor is made of numbers."""
        made: dict[torch.device, tuple[Tensor, Tensor]] = self.__dict__.setdefault("made", {})
        if device in made:
            return made[device]
        with torch.inference_mode(False):
            mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return made.setdefault(device, (mean, std)) if device.type == "cuda" else (mean, std)


def resize(images: Tensor, size: int, interpolation: str) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, size, size) whole numbers as float32, in Pillow's way, antialiased.

    Pillow resizes rows, then columns, and rounds to 8 bits after each; the libraries' own transforms are Pillow's,
    so doing the same gives their very pixels on any device, but for ties: Pillow's weights are whole multiples of
    2**-22, and where the exact value is halfway between two grey levels their rounding error decides. From 32 to 112
    px (7/2, where ties are many) that is 0.4 % of the pixels, bicubic, or 8 %, bilinear, mostly by one level; from 32
    to 128 or 224 px 0.01 %, or none. The features of a ViT-S/14 at 112 px differ by 0.025 at the most, of values around
    1.8 (cosine 0.99999).
    """
    pixels = images.float()
    for shape in ((pixels.shape[-2], size), (size, size)):
        if pixels.shape[-2:] != shape:
            pixels = F.interpolate(pixels, shape, mode=interpolation, antialias=True, align_corners=False)
            pixels = (pixels + 0.5).floor().clamp(0, 255)
    return pixels


def middle(pixels: Tensor, size: int) -> Tensor:
    """The middle `size` pixels a side, at the place where torchvision's CenterCrop cuts it; it pads with black."""
    if (lacking := size - pixels.shape[-1]) > 0:  # cards with a crop above 1 want a frame around the whole image
        before, after = lacking // 2, (lacking + 1) // 2
        return F.pad(pixels, (before, after, before, after))
    start = round((pixels.shape[-1] - size) / 2)
    return pixels[..., start : start + size, start : start + size]


class NetworkPrior(Prior):
    """A frozen network with the preprocessing that belongs to its weights; its output, pooled, is (B, feature_dim)."""

    def __init__(
        self, backbone: nn.Module, preprocess: Preprocess, name: str = "", size: int | None = None, pool: str = "none"
    ) -> None:
        """Unless the backbone says its `feature_dim` it is measured, at `size` where images keep theirs."""
        super().__init__()
        self.backbone, self.preprocess, self.pool = backbone, preprocess, pool
        if not hasattr(backbone, "feature_dim") or name:
            side = preprocess.image_size or size or 0
            with refused(f"prior.model={name} cannot take images of {side} px"):
                backbone.feature_dim = measured_width(Pooled(backbone, pool), side)  # type: ignore[assignment]
            say_unseen(backbone, name, side)
        self.feature_dim = int(backbone.feature_dim)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return vectors(self.backbone(self.preprocess(images)), self.pool).float()  # type: ignore[no-any-return]

    def cells(self, images: Tensor, grid: int) -> Tensor:
        return reduced(feature_map(self.backbone, self.preprocess(images)).float(), grid)

    def covered(self, size: int) -> float:
        return self.preprocess.covered(size)


def reduced(found: Tensor, grid: int) -> Tensor:
    """A map (B, D, h, w) with at most `grid` cells a side, by antialiased bilinear sampling: (B, D, g, g).

    One that is not square becomes square.
    """
    size = min(grid, max(found.shape[2:]))
    if found.shape[2:] == (size, size):
        return found
    return F.interpolate(found, (size, size), mode="bilinear", antialias=True, align_corners=False)


def say_unseen(network: nn.Module, name: str, size: int) -> None:
    """One line where patches do not fill an image of `size` px: the network then cuts off what is left over."""
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or not (left := size % first.stride[0]):
        return
    patch, seen = first.stride[0], size - left
    warn_once(
        f"prior.image_size={size}: the patches of {name} are {patch} px, so it sees {seen} x {seen} px of an image and "
        f"not the last {left} at the right and at the bottom; prior.image_size={seen} or {seen + patch} leaves none"
    )


def built_at(model: str, image_size: int) -> AbstractContextManager[None]:
    """Around the building of a library's model: what the library raises is a ConfigError that names the model."""
    return refused(f"prior.model={model} cannot be built at {image_size} px")
