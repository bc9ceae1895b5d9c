"""Collectives with a gradient. torch's own are deprecated, and its synchronised batch norm wants a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from rela_cli.distributed import ranks
from rela_cli.distributed.pulse import waiting


class Gather(torch.autograd.Function):
    """(B, ...) of every rank -> (world * B, ...); backward: the gradients of all ranks' losses, summed."""

    @staticmethod
    def forward(context: Any, value: Tensor, group: Any) -> Tensor:
        context.group = group
        return ranks.gathered_rows(value, group)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradients[0].contiguous().clone()
        with waiting():
            distributed.all_reduce(total, group=context.group)
        size, rank = distributed.get_world_size(context.group), distributed.get_rank(context.group)
        return total.chunk(size)[rank], None


class Mean(torch.autograd.Function):
    """The mean of every rank's value; backward: the mean of all ranks' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return ranks.mean_over(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        return ranks.mean_over(gradients[0])


@waiting()
def gathered(value: Tensor, group: Any = None) -> Tensor:
    """Each rank's (B, ...), which all have the same shape, one below the other: (world * B, ...), with gradient.

    With a group: of its ranks only.

    The gradient that reaches a rank is that of the sum of all ranks' losses; DistributedDataParallel takes the mean of
    what each makes of it, and so the whole is the gradient of the mean loss.
    """
    if ranks.world() == 1:
        return value
    return Gather.apply(value, group)  # type: ignore[no-any-return, no-untyped-call]


def averaged(value: Tensor) -> Tensor:
    """The mean of each rank's `value`, with gradient as `gathered` has it; ranks stand for equally many samples."""
    if ranks.world() == 1:
        return value
    return Mean.apply(value)  # type: ignore[no-any-return, no-untyped-call]
