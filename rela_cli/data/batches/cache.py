"""What is known of a dataset's images once they have been looked at: pixels as one uint8 array a split, memory-mapped.

Of images that stay on disk the cache holds labels and statistics only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from rela_cli.data.base import Dataset
from rela_cli.data.batches.loader import SAMPLE_IMAGES, DiskImages, Images, sample_of
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts

COUNTED = 256  # images that are counted at a time


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8, in memory or on disk, and labels (N,) int64, or None."""

    images: Images
    labels: Tensor | None


@dataclass(frozen=True)
class ImageStats:
    """What a network needs to know of the images: channel mean and deviation in [0, 1], and their size in pixels."""

    mean: Tensor
    std: Tensor
    size: int

    @classmethod
    def grey(cls, size: int) -> ImageStats:
        """Those of images that nobody has looked at."""
        middle = torch.full((3,), 0.5)
        return cls(middle, middle / 2, size)


def write_images(dataset: Dataset, folder: Path) -> Facts:
    """Decode all splits into `folder`, or a sample of those that stay on disk; facts for the manifest."""
    facts: Facts = {"classes": dataset.classes}
    write = write_labels if dataset.on_disk else write_pixels
    for split in dataset.splits:
        if dataset.count(split):
            facts |= write(dataset, split, folder)
    return facts


def write_pixels(dataset: Dataset, split: str, folder: Path) -> Facts:
    """A split as one array."""
    pixels, labels = dataset.load(split)
    arrays = {"images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), **masks_of(dataset, split)}
    save_file(arrays if labels is None else {**arrays, "labels": labels}, folder / f"{split}.safetensors")
    facts: Facts = {f"{split}_samples": len(pixels)}
    if split == "train":
        facts |= {"size": dataset.image_size or pixels.shape[1], **channel_stats(pixels)}
    return facts


def write_labels(dataset: Dataset, split: str, folder: Path) -> Facts:
    """Which samples a split has, and their labels; statistics of train from a fixed sample of 2,000 images."""
    chosen, labels = dataset.choose(split)
    rows = {"rows": np.ascontiguousarray(chosen, dtype=np.int64), **masks_of(dataset, split)}
    save_file(rows if labels is None else {**rows, "labels": labels}, folder / f"{split}.safetensors")
    facts: Facts = {f"{split}_samples": len(chosen)}
    if split == "train":
        side = len(dataset.image(split, int(chosen[0])))
        seen = sample_of(DiskImages(dataset, split, torch.from_numpy(rows["rows"]), side))
        stats = channel_stats(seen.permute(0, 2, 3, 1).numpy())
        facts |= {"on_disk": True, "size": dataset.image_size or side, "decoded_size": side, **stats}
        facts["statistics"] = f"of {len(seen)} train images" + (
            ", a fixed sample" if len(seen) == SAMPLE_IMAGES else ""
        )
    return facts


def masks_of(dataset: Dataset, split: str) -> dict[str, np.ndarray]:
    """The masks (N, S, S) uint8 of a dataset that has some."""
    return {"masks": dataset.masks(split, dataset.choose(split)[0])} if dataset.has_masks else {}


def channel_stats(pixels: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel in [0, 1], over all pixels, from exact integer counts."""
    levels = np.arange(256) / 255
    counts = [np.zeros(256, dtype=np.int64) for _ in range(3)]
    for start in range(0, len(pixels), COUNTED):
        for c, count in enumerate(counts):
            plane = np.ascontiguousarray(pixels[start : start + COUNTED, ..., c])
            count += Image.fromarray(plane.reshape(len(plane), -1)).histogram()  # reads bytes, numpy's would widen them
    means = [float(n @ levels / n.sum()) for n in counts]
    deviations = [float(np.sqrt(n @ (levels - m) ** 2 / n.sum())) for n, m in zip(counts, means, strict=True)]
    return {"mean": means, "std": [max(d, 1e-3) for d in deviations]}


def read_split(entry: Entry, split: str, dataset: Dataset | None = None) -> Split | None:
    """A split from the cache, mapped rather than read, or from the dataset's files; None where there is no such split.

    Where files lie is for the dataset to know (it is no part of the entry), so those on disk need `dataset`.
    """
    path = entry.folder / f"{split}.safetensors"
    if not path.exists():
        return None
    arrays = load_file(path)
    if "rows" in arrays:
        assert dataset is not None
        size = (entry.manifest or {})["decoded_size"]
        return Split(DiskImages(dataset, split, arrays["rows"], size), arrays.get("labels"))
    return Split(arrays["images"], arrays.get("labels"))


def read_labels(entry: Entry, split: str) -> Tensor | None:
    """The labels of a split alone; None where it has none, or is not there."""
    path = entry.folder / f"{split}.safetensors"
    return load_file(path).get("labels") if path.exists() else None


def read_masks(entry: Entry, split: str) -> Tensor:
    """The masks (N, S, S) uint8 of a split, mapped; 255 is ignored."""
    return load_file(entry.folder / f"{split}.safetensors")["masks"]


def read_stats(entry: Entry) -> ImageStats:
    """Channel statistics and size from the entry's manifest."""
    facts = entry.manifest or {}
    return ImageStats(torch.tensor(facts["mean"]), torch.tensor(facts["std"]), facts["size"])
