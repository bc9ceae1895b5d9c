"""Light views that a prior looks at once: where each is cut from its image, and whether it is mirrored, as data.

A box is (top, left, height, width, is mirrored) in whole pixels of the stored image. It stands beside the targets, so
the learner can be shown the very view that a target is of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rela_cli.config.schema import View
from rela_cli.data.batches.views import CANDIDATES, Place, ResampleGrid, crop_boxes, crop_resize
from rela_cli.numerics.randomness import stream_key, uniform


def draw_boxes(view: View, flip: bool, side: int, samples: Tensor, count: int) -> Tensor:
    """`count` boxes of each sample (n,), as a random resized crop and a flip draw them: (n, count, 5) int16.

    A function of sample and view alone, so runs of all seeds share what the prior makes of them.
    """
    limits = torch.full((2, 1, 1), float(side), device=samples.device)
    return torch.stack([one_box(view, flip, limits, samples, number) for number in range(count)], dim=1)


def one_box(view: View, flip: bool, limits: Tensor, samples: Tensor, number: int) -> Tensor:
    """The box of one view of each sample: (n, 5) int16."""
    u = uniform(stream_key(0, "cached view", number), samples, 2 * CANDIDATES + 3)
    start, sides = crop_boxes(view, u, limits)
    mirrored = u[:, -1] < (view.flip_p if flip else 0.0)
    return torch.stack((*start, *sides, mirrored.float()), dim=1).to(torch.int16)


def cut(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The views of images (B, 3, H, H) uint8 by boxes (B, 5), as the uint8 pixels that a prior takes: (B, 3, S, S)."""
    grid = ResampleGrid.of(images.shape[-1], size, images.device)
    start, side, mirrored = box_parts(boxes)
    shown = crop_resize(images.float() / 255, start, side, [grid], flip=mirrored)
    return (shown * 255).round().clamp(0, 255).to(torch.uint8)


def box_parts(boxes: Tensor) -> Place:
    """(B, 5) -> the first pixel and the length of (vertical, horizontal), (2, B) float32 each, and is mirrored (B,)."""
    numbers = boxes.T.float()
    return numbers[:2], numbers[2:4], numbers[4] > 0


@dataclass(frozen=True)
class CachedViews:
    """K views of each of N train images: boxes (N, K, 5) int16, and targets (N, K, k) of any float type."""

    boxes: Tensor
    targets: Tensor
    seed: int  # of which view is shown when

    def chosen(self, rows: Tensor, epoch: int, views: int) -> Tensor:
        """Which of its K views a sample is shown: (B,) -> (views, B) int64; no view twice where there are enough."""
        count = self.boxes.shape[1]
        first = (uniform(stream_key(self.seed, "which view", epoch), rows, 1)[:, 0] * count).floor().long()
        return torch.stack([(first + number) % count for number in range(views)])

    def places(self, rows: Tensor, epoch: int, views: int) -> list[Place]:
        """Where so many views of samples (B,) are cut in an epoch, on the device of `rows`."""
        own = rows.to(self.boxes.device)
        return [box_parts(self.boxes[own, which].to(rows.device)) for which in self.chosen(own, epoch, views)]

    def targets_of(self, rows: Tensor, epoch: int, views: int) -> list[Tensor]:
        """What the prior made of these views, (B, k) float32 of each, on the device of `rows`."""
        own = rows.to(self.targets.device)
        return [self.targets[own, which].to(rows.device).float() for which in self.chosen(own, epoch, views)]
