"""Targets of the cells of an image: the prior's feature map beside its one vector, and where a view lies in that map.

The learner's map is of a view, which was cut from the image and perhaps mirrored; the prior's is of the whole image, or
of that very view. For each cell of the learner's map `at_cells` takes what the prior's map has at the same place.

Shapes: N images, K views, g cells a side of the prior's map, h x w cells of the learner's, k components, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rela_cli.data.batches.views import Place


class CellTargets(NamedTuple):
    """What the cells of one view are compared to."""

    maps: Tensor  # (B, k, g, g)
    boxes: Tensor  # (B, 4), the place of the view in its map, in cells: left, top, right, bottom
    mirrored: Tensor  # (B,), the view is the mirror image of what lies there


class TargetsWithCells(NamedTuple):
    """The targets of a batch of views: (B, k) of all, or of each, and of their cells."""

    pooled: Tensor | list[Tensor]
    cells: list[CellTargets]


@dataclass(frozen=True)
class TokenTargets:
    """Of N train images, or of K views of each, a map: (N, 1 or K, g * g, k) of any float type, row by row.

    `side` is that of the stored images and `size` that of their middle, which the prior was shown, in pixels. `covered`
    is the share of a side of what it was shown that its map is of, in the middle.
    """

    targets: Tensor
    side: int
    size: int
    covered: float = 1.0

    @classmethod
    def blank(cls, images: int, cells: int, width: int, size: int, device: torch.device | str = "cpu") -> TokenTargets:
        """Of images of `size` px without any content, for what asks how long a step takes, or how much memory."""
        return cls(torch.zeros(images, 1, cells, width, dtype=torch.float16, device=device), size, size)

    @property
    def grid(self) -> int:
        """Cells a side."""
        return round(float(self.targets.shape[2]) ** 0.5)

    def of_places(self, rows: Tensor, places: Sequence[Place]) -> list[CellTargets]:
        """Of views that are cut from the clean images of samples (B,), on the device of `rows`."""
        maps, start = self.maps(rows, torch.zeros_like(rows)), (self.side - self.size) // 2
        first, length = self.frame(start, self.size)
        cells = self.grid / length
        return [
            CellTargets(maps, corners((begin - first) * cells, sides * cells), mirrored)
            for begin, sides, mirrored in places
        ]

    def of_views(self, rows: Tensor, chosen: Tensor) -> list[CellTargets]:
        """Of cached views (V, B) of samples (B,): the map is of all of the view, mirrored as it is."""
        first, length = self.frame(0, self.size)
        start = torch.full((2, len(rows)), -first / length * self.grid, device=rows.device)
        sides = torch.full_like(start, self.size / length * self.grid)
        boxes, mirrored = corners(start, sides), torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        return [CellTargets(self.maps(rows, which), boxes, mirrored) for which in chosen]

    def frame(self, start: float, length: float) -> tuple[float, float]:
        """The first pixel and the length of what the map is of, where the prior was shown `length` from `start` on."""
        return start + length * (1 - self.covered) / 2, length * self.covered

    def maps(self, rows: Tensor, which: Tensor) -> Tensor:
        """(B,), and which map of each (B,) -> (B, k, g, g) float32."""
        place = self.targets.device
        found = self.targets[rows.to(place), which.to(place)].to(rows.device).float()
        return found.transpose(1, 2).unflatten(2, (self.grid, self.grid)).contiguous()


def corners(start: Tensor, sides: Tensor) -> Tensor:
    """First point and length of (vertical, horizontal), (2, B) each -> (B, 4): left, top, right, bottom."""
    (top, left), (bottom, right) = start, start + sides
    return torch.stack((left, top, right, bottom), dim=1)


def at_cells(target: CellTargets, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The targets of h x w cells of a view, (B, k, h, w), and where there is one: (B, h, w), 1 or 0.

    The mean of the map over each cell, by bilinear sampling (RoIAlign, He et al. 2017), mirrored as the view is. A cell
    whose middle lies outside of the map has no target.
    """
    maps, boxes, mirrored = target
    from torchvision.ops import roi_align  # here, since few runs need it: it takes a second to import

    numbers = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    found = roi_align(maps, torch.cat((numbers[:, None], boxes), dim=1), cells, aligned=True)
    across, down = (middles(boxes[:, axis], boxes[:, axis + 2], cells[1 - axis]) for axis in (0, 1))
    inside = ((down >= 0) & (down <= maps.shape[-2]))[:, :, None] & ((across >= 0) & (across <= maps.shape[-1]))[
        :, None
    ]
    turned = mirrored.view(-1, 1, 1)
    found = torch.where(turned[..., None], found.flip(-1), found)
    return found, torch.where(turned, inside.flip(-1), inside).float()


def middles(first: Tensor, last: Tensor, count: int) -> Tensor:
    """The middles of `count` equal parts between two points (B,): (B, count)."""
    share = (torch.arange(count, device=first.device) + 0.5) / count
    return first[:, None] + (last - first)[:, None] * share
