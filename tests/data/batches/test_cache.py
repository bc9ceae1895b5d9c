"""What the cache holds, and statistics of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rela_cli.data.batches.cache import channel_stats, read_split, read_stats, write_images
from rela_cli.data.datasets import Fake
from rela_cli.store.entries import Entry
from tests.data.test_folders import COMMON


def test_channel_statistics_are_numpys() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (50, 9, 9, 3), dtype=np.uint8)
    pixels[..., 2] = 7
    found = channel_stats(pixels)
    exact = pixels.astype(np.float64) / 255
    assert found["mean"] == pytest.approx(exact.mean((0, 1, 2)), abs=1e-12)
    assert found["std"][:2] == pytest.approx(exact.std((0, 1, 2))[:2], abs=1e-12)
    assert found["std"][2] == 1e-3, "a constant channel must not be divided by zero"


def test_the_cache_holds_what_was_decoded(tmp_path: Path) -> None:
    dataset = Fake(n=20, n_test=6, size=4, classes=2, **COMMON)
    entry = Entry("images", {"a": 1}, tmp_path)
    assert entry.make(lambda folder: write_images(dataset, folder))
    images, labels = dataset.load("train")
    split, stats = read_split(entry, "train"), read_stats(entry)
    assert split is not None and split.labels is not None
    assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), images)
    assert np.array_equal(split.labels.numpy(), labels)
    assert (stats.size, stats.mean.shape) == (4, (3,))
    assert stats.mean.numpy() == pytest.approx(images.mean((0, 1, 2)) / 255, abs=1e-6)
