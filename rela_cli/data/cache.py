"""Decoded small images, cached as one uint8 array a split and memory-mapped after that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from rela_cli.artifacts import Entry, Facts
from rela_cli.data.datasets import Dataset


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8 and labels (N,) int64, or None."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class ImageStats:
    """What a network needs to know of the images: channel mean and deviation in [0, 1], and their size in pixels."""

    mean: Tensor
    std: Tensor
    size: int


def write_images(dataset: Dataset, folder: Path) -> Facts:
    """Decode all splits into `folder`; facts for the manifest."""
    facts: Facts = {"classes": dataset.classes}
    for split in ("train", "test"):
        if dataset.count(split) == 0:
            continue
        pixels, labels = dataset.load(split)
        arrays = {"images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
        save_file(arrays if labels is None else {**arrays, "labels": labels}, folder / f"{split}.safetensors")
        facts[f"{split}_samples"] = len(pixels)
        if split == "train":
            facts |= {"size": pixels.shape[1], **channel_stats(pixels)}
    return facts


def channel_stats(pixels: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel in [0, 1], over all pixels, from exact integer counts."""
    levels = np.arange(256) / 255
    counts = [np.bincount(pixels[..., c].reshape(-1), minlength=256) for c in range(3)]
    means = [float(n @ levels / n.sum()) for n in counts]
    deviations = [float(np.sqrt(n @ (levels - m) ** 2 / n.sum())) for n, m in zip(counts, means, strict=True)]
    return {"mean": means, "std": [max(d, 1e-3) for d in deviations]}


def read_split(entry: Entry, split: str) -> Split | None:
    """A split from the cache, mapped rather than read; None when the dataset has no such split."""
    path = entry.folder / f"{split}.safetensors"
    if not path.exists():
        return None
    arrays = load_file(path)
    return Split(arrays["images"], arrays.get("labels"))


def read_stats(entry: Entry) -> ImageStats:
    """Channel statistics and size from the entry's manifest."""
    facts = entry.manifest or {}
    return ImageStats(torch.tensor(facts["mean"]), torch.tensor(facts["std"]), facts["size"])
