"""Our own losses against lightly's, whose numbers they have to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightly.loss import NTXentLoss, VICRegLoss
from torch import Tensor

from rela_cli.methods.losses import nt_xent, vicreg

Loss = Callable[[Tensor, Tensor], Tensor]
PAIRS: dict[str, tuple[Loss, Loss]] = {
    "simclr": (lambda a, b: nt_xent(a, b, 0.2), NTXentLoss(0.2)),
    "vicreg": (lambda a, b: vicreg(a, b, 25.0, 50.0, 1.0), VICRegLoss(25.0, 50.0, 1.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3), (16, 12), (128, 64)])
@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradients_are_lightlys(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    views = [torch.randn(shape, generator=random, dtype=dtype).requires_grad_() for _ in range(2)]
    ours, theirs = (loss(*views) for loss in PAIRS[name])
    assert torch.equal(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views), strict=True):
        assert torch.equal(one, other)
