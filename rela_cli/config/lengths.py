"""How long a run is: steps, epochs and images of each phase; and how many components its targets have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rela_cli.config.schema import Config, Part
from rela_cli.errors import ConfigError
from rela_cli.terminal import plural


@dataclass(frozen=True)
class Lengths:
    """How long a run is; derived from the config and the dataset's size in this one place.

    An epoch is one pass over the subset, the last partial batch dropped (ReLA-F in the paper).
    """

    train_samples: int
    subset_size: int
    steps_per_epoch: int
    total_steps: int
    samples_seen: int


def lengths(config: Config, train_samples: int) -> Lengths:
    """Subset size and steps for a train split of `train_samples`.

    Raises:
        ConfigError: when one batch is larger than the subset.
    """
    subset_size = math.floor(config.budget * train_samples + 1e-9)
    steps_per_epoch = subset_size // config.batch_size
    if steps_per_epoch == 0:
        too_few = "A batch takes 2 at the least: say a larger budget"
        way_out = f"Say batch_size={subset_size} or less" if subset_size >= 2 else too_few
        raise ConfigError(
            f"batch_size={config.batch_size} is larger than the subset: budget={config.budget:g} of "
            f"{plural(train_samples, 'sample')} is {subset_size}. {way_out}, or take more"
        )
    steps = steps_per_epoch * config.epochs
    return Lengths(train_samples, subset_size, steps_per_epoch, steps, steps * config.batch_size)


def components_kept(transport: Part, features: int) -> int:
    """How many of a prior's D_p components a transport keeps on disk."""
    dims, max_dim = transport.options.get("dims"), transport.options.get("max_dim", features)
    return min(features, dims if isinstance(dims, int) else max_dim)
