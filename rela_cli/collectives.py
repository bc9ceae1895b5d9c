"""Collectives with a gradient. torch's own are deprecated, and its synchronised batch norm wants a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from rela_cli import ranks
from rela_cli.pulse import waiting


class Gather(torch.autograd.Function):
    """(B, ...) of every rank -> (world * B, ...); backward, the sum of what all ranks' losses want of this rank's."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(ranks.world())]
        distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        total = gradients[0].contiguous().clone()
        with waiting():
            distributed.all_reduce(total)
        return total.chunk(ranks.world())[ranks.rank()]


class Mean(torch.autograd.Function):
    """The mean of every rank's value; backward, the mean of what all ranks' losses want of it."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return ranks.mean_over(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        return ranks.mean_over(gradients[0])
