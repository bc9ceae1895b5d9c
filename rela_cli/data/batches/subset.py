"""The dynamic subset: which samples an epoch sees, and in which order (ReLA-F in the paper)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rela_cli.numerics.randomness import first, key, permutation


@lru_cache(maxsize=1)  # an epoch is asked for more than once; whoever asks only reads
def epoch_indices(seed: int, epoch: int, train_samples: int, subset_size: int) -> Tensor:
    """Sample indices of one epoch, in order of use: (subset_size,) int64.

    Uniform without replacement and drawn anew each epoch; a pure function of its arguments. The order has a
    stream of its own, so that a change of budget does not reshuffle what both budgets share.
    """
    chosen = first(key(seed, "subset", epoch), train_samples, subset_size)
    position = permutation(key(seed, "order", epoch), train_samples)
    turns = torch.full((train_samples,), -1)
    turns[position[chosen]] = chosen  # at its place in an order of all samples
    return turns[turns >= 0]
