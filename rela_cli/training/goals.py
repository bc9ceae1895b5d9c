"""What phase 1 compares the views of a step to, and where it cuts them from their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rela_cli.data.batches.boxes import CachedViews
from rela_cli.data.batches.loader import sent
from rela_cli.data.batches.tokens import TargetsWithCells, TokenTargets
from rela_cli.data.batches.views import Place, Views
from rela_cli.training.live import LiveTargets

VIEWS = 2  # of an image in phase 1

Targets = Tensor | list[Tensor] | TargetsWithCells  # (B, k), or one such for each view; with those of their cells


@dataclass(frozen=True)
class Goals:
    """What phase 1 matches the learner to: the targets (N, k) of the clean images, unless the views have their own.

    With `live` a view is matched to what the prior makes of it, with `cached` to what the prior made of it once; of
    `targets` the width alone counts then. With `tokens` the cells of the learner's map are matched, too.
    """

    targets: Tensor
    live: LiveTargets | None = None
    cached: CachedViews | None = None
    tokens: TokenTargets | None = None

    @property
    def width(self) -> int:
        """k, components of a target."""
        return self.targets.shape[1]

    @property
    def token_width(self) -> int | None:
        """Components of the target of a cell; None where cells have none."""
        return self.tokens.targets.shape[3] if self.tokens else None

    def on(self, device: torch.device) -> Goals:
        """The same, for rows and views on a device."""
        cached, tokens = self.cached, self.tokens
        return replace(
            self,
            targets=near(self.targets, device),
            cached=cached and replace(cached, boxes=cached.boxes.to(device), targets=near(cached.targets, device)),
            tokens=tokens and replace(tokens, targets=near(tokens.targets, device)),
        )

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
        if self.targets.device.type == rows.device.type:
            return self.targets[rows].float()
        return sent(self.targets[rows.cpu()], rows.device).float()  # too many for the GPU: it is waited for


def near(targets: Tensor, device: torch.device) -> Tensor:
    """On the GPU where they take less than a quarter of its free memory; else mapped from disk."""
    if device.type == "cpu" or targets.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return targets
    return targets.to(device)
