"""Weights of 32 bits, lent to a network in 16 for a pass: cast by one kernel, and their gradients back by another.

autocast casts each weight by a kernel of its own, forward and backward: two for each convolution and each linear layer.
The numbers are the same to the bit. Other modules keep their weights, which autocast then casts as it always does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LENT_TO = (nn.Conv2d, nn.Linear)  # exactly these: what derives from them may do something else with its weights


class Cast(torch.autograd.Function):
    """Tensors in another type, all at once; gradients come back in the tensors' own."""

    @staticmethod
    def forward(context: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        context.set_materialize_grads(False)
        context.dtype = tensors[0].dtype
        return tuple(cast(tensors, dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = iter(cast([gradient for gradient in gradients if gradient is not None], context.dtype))
        return None, *(None if gradient is None else next(there) for gradient in gradients)


def cast(tensors: list[Tensor] | tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Copies in a type, laid out as the tensors are."""
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if made:
        torch._foreach_copy_(made, list(tensors))
    return made


class HalfWeights:
    """Weights and biases of a network's convolutions and linear layers."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        modules = [module for module in network.modules() if type(module) in LENT_TO]
        self.dtype = dtype
        named = [(module, *pair) for module in modules for pair in module.named_parameters(recurse=False)]
        self.places = [(module, name) for module, name, weight in named if weight.dtype == torch.float32]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the modules see them in 16 bits; what is saved, trained and counted are those of 32."""
        weights = [module._parameters[name] for module, name in self.places]
        if weights:
            for (module, name), half in zip(self.places, Cast.apply(self.dtype, *weights), strict=True):  # type: ignore[no-untyped-call]
                module.__dict__[name] = half  # hides the parameter, which is found in _parameters
        try:
            yield
        finally:
            for module, name in self.places:
                module.__dict__.pop(name, None)
