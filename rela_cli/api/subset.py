"""`rela.DynamicSubset`: which samples an epoch sees, for any data loader (ReLA-F in the paper)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import distributed
from torch.utils.data import Sampler

from rela_cli.data.batches.subset import epoch_indices


class DynamicSubset(Sampler[int]):
    """A new random share of the samples each epoch, in a random order: the very samples of `rela train`.

    A function of (seed, epoch): workers, ranks and restarts change nothing. Each pass over it is the next epoch, unless
    `set_epoch` says another. With `world` ranks, rank r gets samples r, r + world, ..., all ranks equally many. Both
    numbers are torch.distributed's unless they are given. Where the loop shares out batches itself (accelerate), say
    world=1.

    >>> sampler = DynamicSubset(10, budget=0.5, seed=0)
    >>> len(sampler), list(sampler), list(sampler)
    (5, [5, 1, 3, 6, 4], [3, 0, 4, 8, 2])
    >>> sampler.set_epoch(0)
    >>> list(sampler)
    [5, 1, 3, 6, 4]
    """

    def __init__(
        self, samples: int, budget: float = 1.0, seed: int = 0, rank: int | None = None, world: int | None = None
    ) -> None:
        """Raises ValueError for a budget outside (0, 1], or one that leaves a rank nothing."""
        if not 0 < budget <= 1:
            raise ValueError(f"budget={budget} must be above 0 and at most 1: the share of the samples an epoch sees")
        self.samples, self.budget, self.seed = samples, budget, seed
        self.given = rank, world
        self.epoch, self.is_begun = 0, False  # of the pass that began last, or of the first
        self.skip = 0  # samples of the next pass that a loop before this one has seen
        if len(self) < 1:
            raise ValueError(f"budget={budget} of {samples} samples over {self.world} ranks leaves nothing")

    @property
    def rank(self) -> int:
        """Which of the ranks this is, from 0."""
        rank = self.given[0]
        return rank if rank is not None else distributed.get_rank() if is_distributed() else 0

    @property
    def world(self) -> int:
        """How many ranks share an epoch."""
        world = self.given[1]
        return world if world is not None else distributed.get_world_size() if is_distributed() else 1

    def __len__(self) -> int:
        """Samples of an epoch, of this rank."""
        return math.floor(self.budget * self.samples + 1e-9) // self.world

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is, from 0."""
        self.skip = self.skip if epoch == self.epoch else 0
        self.epoch, self.is_begun = epoch, False

    def __iter__(self) -> Iterator[int]:
        self.epoch += self.is_begun
        self.is_begun = True
        size = len(self) * self.world
        order = epoch_indices(self.seed, self.epoch, self.samples, math.floor(self.budget * self.samples + 1e-9))
        skip, self.skip = self.skip, 0
        return iter(order[:size][self.rank :: self.world].tolist()[skip:])

    def state_dict(self, seen: int = 0) -> dict[str, Any]:
        """Where a loop stands that has seen `seen` samples of the last pass, on this rank; workers draw ahead of it.

        >>> state = DynamicSubset(10, budget=0.5).state_dict(seen=3)
        >>> other = DynamicSubset(10, budget=0.5)
        >>> other.load_state_dict(state)
        >>> list(other)
        [6, 4]
        """
        return {"samples": self.samples, "budget": self.budget, "seed": self.seed, "epoch": self.epoch, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is the state of another subset.
        """
        own = {"samples": self.samples, "budget": self.budget, "seed": self.seed}
        if odd := [f"{key} {state.get(key)}, here {value}" for key, value in own.items() if state.get(key) != value]:
            raise ValueError(f"this is the state of another subset: {'; '.join(odd)}")
        self.epoch, self.skip, self.is_begun = int(state["epoch"]), int(state["seen"]), False


def is_distributed() -> bool:
    """Whether there are ranks."""
    return distributed.is_available() and distributed.is_initialized()
