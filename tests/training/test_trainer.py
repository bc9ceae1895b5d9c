"""The loop and its images on disk: decoded ahead from epoch to epoch, in the order of images in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from rela_cli.data.batches.loader import BATCHES_AHEAD, DiskImages
from rela_cli.training.trainer import Trainer, epochs_drawn
from tests.factories import trainer

STEPS = 4  # an epoch


class OnDisk:
    """A dataset whose images are those of a trainer; it notes which batches are asked for."""

    def __init__(self, loop: Trainer) -> None:
        assert isinstance(loop.images, torch.Tensor)
        self.images, self.asked = loop.images.numpy(), list[list[int]]()

    def prefetch(self, split: str, samples: np.ndarray) -> Callable[[int], np.ndarray]:
        self.asked.append(samples.tolist())
        return lambda i: self.images[samples[i]].transpose(1, 2, 0)


def from_disk(*words: str) -> tuple[Trainer, OnDisk]:
    loop = trainer("epochs=3", *words)
    dataset = OnDisk(loop)
    loop.images = DiskImages(cast(Any, dataset), "train", torch.arange(64), 8)
    return loop, dataset


@pytest.mark.parametrize("done", [0, 2])
def test_while_an_epoch_ends_the_next_one_is_being_decoded(done: int) -> None:
    """From its beginning, and from the middle of an epoch; each epoch has its own order."""
    loop, dataset = from_disk()
    loop.position.step = done
    expected = [rows for epoch in range(3) for rows in loop.rank_batches(epoch)]
    for batches in epochs_drawn(loop):
        for rows, images in batches:
            assert torch.equal(rows, expected[loop.position.step])
            assert torch.equal(images, torch.from_numpy(dataset.images)[rows])
            loop.position.step += 1
            assert len(dataset.asked) == min(loop.position.step + BATCHES_AHEAD, 3 * STEPS) - done
        assert loop.position.step % STEPS == 0
    assert loop.position.step == 3 * STEPS
