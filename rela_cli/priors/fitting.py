"""A prior that is ready to look at images: built, its weights loaded, fitted to the train images, on its device."""

from __future__ import annotations

import torch

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import centre, sample_of
from rela_cli.distributed import ranks
from rela_cli.machine.device import pick_device
from rela_cli.machine.precision import extracting
from rela_cli.priors.base import Prior
from rela_cli.priors.cells import Cells
from rela_cli.weights.locate import located


def built_prior(config: Config, data: ImageStats) -> Prior:
    """The prior of a config with its weights, wherever they lie."""
    return instantiate(located(config.prior), data=data, allow=config.allow)  # type: ignore[no-any-return]


def fitted_prior(config: Config, train: Split, data: ImageStats, grid: int = 0) -> tuple[Prior, torch.device]:
    """The prior, ready to look at images, and the device that it is on; what it is fitted to, it sees in fp32.

    With `grid` it gives the cells of its feature map, at most so many a side, in the place of its features.
    """
    device = pick_device(config.runtime)
    prior = built_prior(config, data)
    prior = Cells(prior, grid, data.size) if grid else prior
    prior.fit(centre(sample_of(train.images), data.size))
    ranks.broadcast_parameters(prior)  # what it was fitted to depends on threads in its last bits
    prior = prior.to(device).eval()
    if device.type == "cuda":
        prior.to(memory_format=torch.channels_last)
    extracting(prior, config.runtime, device)
    return prior, device
