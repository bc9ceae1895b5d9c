"""Weights that are cast together are those that autocast casts one by one: forward, gradients and files."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rela_cli.machine.precision import in_half

CPU = torch.device("cpu")


class Scaled(nn.Linear):
    """What derives from a linear layer may do something else with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.dtype == torch.float32
        return nn.functional.linear(x, 2 * self.weight)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm, head = nn.BatchNorm2d(6), Scaled(10, 4, bias=False)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(96, 10), nn.LayerNorm(10), head)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_to_the_bit_as_one_by_one(dtype: torch.dtype) -> None:
    one, together = network(), network()
    in_half(one, CPU, dtype)
    in_half(together, CPU, dtype, casts_at_once=True)
    together[4].bias.requires_grad_(False)  # type: ignore[union-attr]
    one[4].bias.requires_grad_(False)  # type: ignore[union-attr]
    for x in torch.randn(2, 5, 3, 6, 6):  # gradients of two passes add up
        losses = [(made(x) * torch.arange(4)).square().mean() for made in (one, together)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
    for (name, a), b in zip(one.named_parameters(), together.parameters(), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a.grad is None and b.grad is None) if name == "4.bias" else torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]


def test_outside_of_a_pass_weights_are_whole() -> None:
    made = network()
    before = copy.deepcopy(made.state_dict())
    in_half(made, CPU, casts_at_once=True)
    with torch.no_grad():
        assert made(torch.randn(2, 3, 6, 6)).dtype == torch.float32
    with pytest.raises(RuntimeError):
        made(torch.randn(2, 4, 6, 6))
    assert made[0].weight.dtype == torch.float32 and "weight" not in vars(made[0]), "also after an error"
    state = made.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[k], before[k]) for k in before if "running" not in k and "tracked" not in k)


def test_a_network_without_such_layers() -> None:
    made = nn.Sequential(nn.Flatten())
    in_half(made, CPU, casts_at_once=True)
    assert made(torch.ones(2, 3, 1, 1)).shape == (2, 3)
