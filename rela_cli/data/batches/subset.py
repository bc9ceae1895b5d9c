"""The dynamic subset: which samples an epoch sees, and in which order (ReLA-F in the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from rela_cli.config.lengths import Lengths
from rela_cli.numerics.randomness import first_of_permutation, permutation, stream_key


@lru_cache(maxsize=1)  # an epoch is asked for more than once; whoever asks only reads
def epoch_indices(seed: int, epoch: int, train_samples: int, subset_size: int) -> Tensor:
    """Sample indices of one epoch, in order of use: (subset_size,) int64.

    Uniform without replacement and drawn anew each epoch; a pure function of its arguments. The order has a
    stream of its own, so that a change of budget does not reshuffle what both budgets share.
    """
    chosen = first_of_permutation(stream_key(seed, "subset", epoch), train_samples, subset_size)
    position = permutation(stream_key(seed, "order", epoch), train_samples)
    turns = torch.full((train_samples,), -1)
    turns[position[chosen]] = chosen  # at its place in an order of all samples
    return turns[turns >= 0]


def batches(seed: int, epoch: int, lengths: Lengths, batch_size: int, taken: int = 0) -> Iterator[Tensor]:
    """Sample indices (batch_size,) of each step but the `taken` first; the last partial batch is dropped."""
    order = epoch_indices(seed, epoch, lengths.train_samples, lengths.subset_size)
    for start in range(taken * batch_size, lengths.steps_per_epoch * batch_size, batch_size):
        yield order[start : start + batch_size]
