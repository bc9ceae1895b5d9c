"""Targets that are not taken from the cache: the prior looks at every view of phase 1 (matching.targets=live).

This is distillation from a frozen teacher, on the way that the cached targets have gone: the same prior with its own
preprocessing, the same fitted map. It is the baseline of the cached targets, which cost the prior's pass once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.machine.precision import tf32
from rela_cli.priors.base import Prior, resize
from rela_cli.priors.fitting import fitted_prior
from rela_cli.store.row_file import RowFile
from rela_cli.transports.base import Transport, taken_up


class LiveTargets:
    """V views (B, 3, S, S), normalised -> V targets (B, width) float32, without gradient.

    stored: the type that features have in the cache. Features of views are rounded to it as well, because the map was
    fitted to rounded ones: of the clean view comes what is in the cache, but for the last rounding of targets.
    """

    def __init__(self, prior: Prior, mapping: Transport, width: int, data: ImageStats, stored: torch.dtype) -> None:
        self.prior, self.mapping, self.width, self.size, self.stored = prior, mapping, width, data.size, stored
        self.mean, self.std = data.mean.view(1, 3, 1, 1), data.std.view(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(self, views: Sequence[Tensor]) -> list[Tensor]:
        with tf32(False):  # the prior computes in its own precision, whatever the learner does
            return [self.mapping(self.features(view))[:, : self.width].float() for view in views]

    def features(self, view: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D_p); what the type of the cache cannot hold becomes its largest number."""
        largest = torch.finfo(self.stored).max
        return self.prior(self.pixels(view)).clamp(-largest, largest).to(self.stored)  # type: ignore[no-any-return]

    def pixels(self, view: Tensor) -> Tensor:
        """A normalised view as the uint8 pixels that priors take; a smaller one enlarged to the images' size."""
        self.mean, self.std = self.mean.to(view.device), self.std.to(view.device)  # moves once
        pixels = ((view * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if pixels.shape[-1] == self.size:
            return pixels
        return resize(pixels, self.size, "bilinear").to(torch.uint8)


def live_targets(
    config: Config, train: Split, data: ImageStats, features: Sequence[Path], targets: Path, width: int
) -> LiveTargets:
    """The prior of a config, and the map that stage transport has fitted.

    features, targets: folders of the cache; of an ensemble the features of each member. The map was fitted to them.

    Raises:
        ConfigError: the transport cannot be loaded from what it has saved.
        RelaError: the prior's files are not there any more.
    """
    prior, device = fitted_prior(config, train, data)
    instead = ("matching.targets=live", "matching.targets=cached")
    mapping = taken_up(config.transport, targets / "map.safetensors", *instead, device)
    dtypes = [RowFile(folder / "train.safetensors", "features").dtype for folder in features]
    return LiveTargets(prior, mapping, width, data, max(dtypes, key=lambda dtype: dtype.itemsize))
