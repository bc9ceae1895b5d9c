"""What rows work on: images and features that anybody can make again, or the images of --data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rela_cli.commands.bench.contest import Bench
from rela_cli.data.batches.cache import ImageStats, channel_stats
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import MissingError

CLASSES = 10
SIDE = 32  # pixels
QUALITY = 75  # of JPEGs that are written here; PNGs take no notice


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Some work with so many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def images(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    """(n, 3, 32, 32) uint8 and labels (n,): of --data, or smooth colours under noise with a tint for each class."""
    if bench.data:
        return decoded(folder(bench.data, limit=n), "train")
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % CLASSES
    tints = torch.rand(CLASSES, 3, 4, 4, generator=random)[labels]
    corners = 0.5 * tints + 0.5 * torch.rand(n, 3, 4, 4, generator=random)
    smooth = F.interpolate(corners, (SIDE, SIDE), mode="bilinear", align_corners=True)
    noise = 0.1 * torch.randn(n, 3, SIDE, SIDE, generator=random)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels


def decoded(dataset: ImageFolder, split: str) -> tuple[Tensor, Tensor]:
    """(N, 3, S, S) uint8 and labels of a split.

    Raises:
        MissingError: its images have no classes, or it has none.
    """
    if not dataset.count(split) or (found := dataset.load(split))[1] is None:
        raise MissingError(f"--data {dataset.root} has no {split}/<class>/*")
    pixels, labels = found
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


def stats(pixels: Tensor) -> ImageStats:
    """Channel statistics of (N, 3, S, S) uint8."""
    found = channel_stats(pixels.permute(0, 2, 3, 1).numpy())
    return ImageStats(torch.tensor(found["mean"]), torch.tensor(found["std"]), pixels.shape[-1])


def folder(root: Path, limit: int | None = None, cache: Path | None = None) -> ImageFolder:
    """An image folder as `dataset=image_folder` has it."""
    return ImageFolder(str(root), image_size=None, limit=limit, test_limit=limit, seed=0, flip=True, cache=cache)


def write_images(folder: Path, pixels: Tensor, labels: Tensor, suffix: str) -> None:
    """<class>/<number><suffix> of each image."""
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:06d}{suffix}", quality=QUALITY)


def features(n: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, width) float32 and labels: ReLU of random mixtures of ten broad classes, as a network's last layer gives.

    The mixture is the same for every `seed`, the samples are not.
    """
    random = torch.Generator().manual_seed(17)
    centres = 1.15 * torch.randn(CLASSES, 32, generator=random)
    mixing = torch.randn(64, width, generator=random) * torch.logspace(0, -1.5, 64)[:, None]
    shift = 0.3 * torch.randn(width, generator=random)
    random.manual_seed(1000 + seed)
    labels = torch.randint(CLASSES, (n,), generator=random)
    hidden = torch.cat((centres[labels], torch.zeros(n, 32)), dim=1) + 1.5 * torch.randn(n, 64, generator=random)
    noise = 0.05 * torch.randn(n, width, generator=random)
    return (hidden @ mixing * 0.2 + shift + noise).relu_(), labels
