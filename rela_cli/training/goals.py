"""What phase 1 compares the views of a step to, and where it cuts them from their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rela_cli.data.batches.boxes import CachedViews
from rela_cli.data.batches.loader import sent
from rela_cli.data.batches.tokens import TargetsWithCells, TokenTargets
from rela_cli.data.batches.views import Place, Views
from rela_cli.training.live import LiveTargets

VIEWS = 2  # of an image in phase 1

Targets = Tensor | list[Tensor] | TargetsWithCells  # (B, k), or one such for each view; with those of their cells


class Goals:
    """Targets (N, k) of the clean images, or of the views themselves: by `live`, or by `cached`, whose views were cut
    before. `tokens` adds those of the cells of the learner's map.
    """

    def __init__(
        self,
        targets: Tensor,
        device: torch.device,
        live: LiveTargets | None = None,
        cached: CachedViews | None = None,
        tokens: TokenTargets | None = None,
    ) -> None:
        self.targets, self.device, self.live = near(targets, device), device, live
        self.cached = cached and replace(cached, boxes=cached.boxes.to(device), targets=near(cached.targets, device))
        self.tokens = tokens and replace(tokens, targets=near(tokens.targets, device))

    def places(self, rows: Tensor, epoch: int, views: Views, shape: torch.Size) -> Sequence[Place]:
        """Where views of samples (B,) are cut from images of H x W pixels; empty where random numbers alone say so."""
        if self.cached is not None:
            return self.cached.places(rows, epoch, VIEWS)
        return views.places(rows, epoch, shape) if self.tokens else ()

    def of(self, views: Sequence[Tensor], rows: Tensor, epoch: int, places: Sequence[Place]) -> Targets:
        """The targets of views of samples (B,) that are cut at these places."""
        pooled = self.pooled(views, rows, epoch)
        if self.tokens is None:
            return pooled
        if self.cached is None:
            return TargetsWithCells(pooled, self.tokens.of_places(rows, places))
        chosen = self.cached.chosen(rows.to(self.cached.boxes.device), epoch, VIEWS)
        return TargetsWithCells(pooled, self.tokens.of_views(rows, chosen))

    def pooled(self, views: Sequence[Tensor], rows: Tensor, epoch: int) -> Tensor | list[Tensor]:
        """(B, k) from the cache, or one such for each view."""
        if self.live is not None:
            return self.live(views)
        if self.cached is not None:
            return self.cached.targets_of(rows, epoch, VIEWS)
        if self.targets.device.type == self.device.type:
            return self.targets[rows].float()
        return sent(self.targets[rows.cpu()], self.device).float()  # too many for the GPU: it is waited for


def near(targets: Tensor, device: torch.device) -> Tensor:
    """On the GPU where they take less than a quarter of its free memory; else mapped from disk."""
    if device.type == "cpu" or targets.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return targets
    return targets.to(device)
