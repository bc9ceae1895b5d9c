"""bf16, compiled and deterministic networks: the same training but for rounding, and the same files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rela_cli.data.loader import load
from rela_cli.precision import set_backends, uses_bf16
from rela_cli.stages.train import Trainer
from tests.factories import config, trainer


def losses(loop: Trainer, steps: int = 4) -> Tensor:
    loop.trainee.train()
    found = []
    for batch, images in load(loop.images, loop.shares(0), loop.device):
        loop.step += 1
        found.append(loop.take_step(batch, images, 0)[0])
    return torch.stack(found[:steps])


def test_bf16_networks_keep_their_weights_in_float32_under_their_own_names() -> None:
    exact, half = (trainer("method=byol", f"runtime.precision={p}", target_dim=None) for p in ("fp32", "bf16"))
    one, other = losses(exact), losses(half)
    assert half.trainee.state_dict().keys() == exact.trainee.state_dict().keys()
    assert all(p.dtype == torch.float32 for p in half.trainee.parameters())
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max(), "rounded, and no more than that"
    view = torch.rand(4, 3, 8, 8)
    assert half.trainee.method.backbone(view).dtype == torch.float32, "heads and losses see float32"


def test_auto_is_fp32_on_a_cpu() -> None:
    assert not uses_bf16(config().runtime, torch.device("cpu"))
    assert uses_bf16(config("runtime.precision=bf16").runtime, torch.device("cpu"))


def test_deterministic_is_a_switch() -> None:
    try:
        set_backends(config("runtime.deterministic=true").runtime)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        set_backends(config().runtime)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_compiled_network_trains_alike() -> None:
    plain, compiled = (
        trainer("method=simclr", f"runtime.compile={mode}", target_dim=None) for mode in ("off", "default")
    )
    compiled.compile()
    assert (losses(plain, 2) - losses(compiled, 2)).abs().max() < 1e-3
    assert compiled.trainee.state_dict().keys() == plain.trainee.state_dict().keys()
