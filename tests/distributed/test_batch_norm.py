"""Batch norms of several views in one pass, in one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rela_cli.distributed import batch_norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(12, 6, 5, 5), (12, 6)])
def test_views_of_16_bits_in_one_tensor_are_torchs_own_one_by_one(shape: tuple[int, ...], affine: bool) -> None:
    """Output, gradients, running statistics and counters, to the bit."""
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    x, gradient = torch.randn(2, *shape).bfloat16()
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    theirs, ours = kind(6, affine=affine), kind(6, affine=affine)
    batch_norm.convert(nn.Sequential(ours))
    found = []
    for norm in (theirs, ours):
        given = x.clone().requires_grad_()
        with batch_norm.views_apart(2):
            out = norm(given) if norm is ours else torch.cat([norm(view) for view in given.chunk(2)])
        out.backward(gradient)
        found.append([out.detach(), given.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert int(ours.num_batches_tracked) == 2  # type: ignore[arg-type]
    assert found[0][0].stride() == found[1][0].stride()
