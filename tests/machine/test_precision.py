"""bf16, compiled and deterministic networks: the same training but for rounding, and the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rela_cli.data.batches.cache import Split
from rela_cli.distributed import batch_norm
from rela_cli.errors import ConfigError, RelaError
from rela_cli.machine.precision import in_tf32, set_backends, uses_bf16
from rela_cli.pipeline.run import Run
from rela_cli.priors.fitting import fitted_prior
from rela_cli.stages.extract import extract, run_prior
from rela_cli.training.trainee import compile_networks
from rela_cli.training.trainer import Trainer
from tests.factories import config, fit, pixels, stats_of, trainer


def losses(loop: Trainer, steps: int = 4) -> Tensor:
    return torch.stack(fit(loop).losses[:steps])


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


# ---------------------------------------------------------------------------------------------------------- the prior


def features(folder: Path, precision: str) -> Tensor:
    images = pixels(40, 8)
    made = config("prior=random", "prior.width=8", f"runtime.extract_precision={precision}", "runtime.block_size=16")
    folder.mkdir()
    facts = extract(made, {"train": Split(images, None)}, stats_of(images), folder)
    assert facts["precision"] == precision
    return load_file(folder / "train.safetensors")["features"].clone()  # mapped until then


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_prior_may_compute_in_half_precision(tmp_path: Path, precision: str) -> None:
    """On a CPU here, where it is asked for by name: the path is the GPU's, its kernels and its speed are not."""
    exact, half = (features(tmp_path / name, name) for name in ("fp32", precision))
    assert half.dtype == exact.dtype == torch.float16, "stored alike"
    limit = {"fp16": 0.005, "bf16": 0.04}[precision]
    assert 0 < (exact - half).abs().max() < limit * exact.abs().max(), "rounded, and no more than that"
    made = config("prior=random", "prior.width=8", f"runtime.extract_precision={precision}")
    images = pixels(8, 8)
    prior, device = fitted_prior(made, Split(images, None), stats_of(images))
    assert all(p.dtype == torch.float32 for p in prior.parameters())
    assert prior(images.to(device)).dtype == torch.float32


def test_features_of_half_precision_have_a_name_of_their_own() -> None:
    runs = {p: Run(config("prior=random", f"runtime.extract_precision={p}")) for p in ("fp32", "fp16", "bf16")}
    assert "extract_precision" not in runs["fp32"].features.spec, "the name that it always had"
    assert len({run.features.hash for run in runs.values()}) == len({run.hash for run in runs.values()}) == 3
    assert runs["fp16"].settings["extract_precision"] == "fp16", "tables tell them apart"
    plain = [Run(config("prior=none", f"runtime.extract_precision={p}")).hash for p in ("fp32", "fp16")]
    assert plain[0] == plain[1], "a run without a prior extracts nothing"


def test_too_large_for_fp16_is_said_with_a_way_out() -> None:
    made = config("prior=random", "prior.width=8", "runtime.extract_precision=fp16")
    images = pixels(8, 8)
    prior, device = fitted_prior(made, Split(images, None), stats_of(images))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.mul_(1e6)
    with pytest.raises(RelaError, match=r"NaN or Inf for an image of train, block 0: runtime\.extract_precision=bf16"):
        list(run_prior(prior, images, 8, 8, device, "train", "fp16"))


# ----------------------------------------------------------------------------------------------------------- switches


def test_deterministic_is_a_switch() -> None:
    try:
        set_backends(config("runtime.deterministic=true").runtime)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    finally:
        set_backends(config().runtime)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic


@pytest.mark.slow
def test_a_compiled_network_trains_alike() -> None:
    plain, compiled = (
        trainer("method=simclr", f"runtime.compile={mode}", target_dim=None) for mode in ("off", "default")
    )
    compile_networks(compiled.trainee, "default")
    assert (losses(plain, 2) - losses(compiled, 2)).abs().max() < 1e-3
    assert compiled.trainee.state_dict().keys() == plain.trainee.state_dict().keys()


# --------------------------------------------------------------------------------------------------------------- TF32


def test_tf32_is_used_where_a_name_says_so() -> None:
    set_backends(config().runtime)
    flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    assert flags() == (False, False)
    network = nn.Linear(2, 2)
    seen: list[tuple[bool, bool]] = []
    network.register_forward_pre_hook(lambda *_: seen.append(flags()))
    forward = network.forward
    network.forward = lambda x: (seen.append(flags()), forward(x))[1]  # type: ignore[method-assign]
    in_tf32(network)
    network(torch.zeros(1, 2))
    assert seen == [(False, False), (True, True)]
    assert flags() == (False, False)


def test_tf32_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.precision=tf32 needs a GPU.*say runtime\.precision=fp32"):
        trainer("runtime.precision=tf32")
    images = pixels(8, 8)
    made = config("prior=random", "prior.width=8", "runtime.extract_precision=tf32")
    with pytest.raises(ConfigError, match=r"runtime\.extract_precision=tf32 needs a GPU"):
        fitted_prior(made, Split(images, None), stats_of(images))


def test_the_gradient_of_a_batch_norm_over_ranks_is_rounded_once() -> None:
    """bf16 with a large common part: two terms that were rounded apart erred by up to 14 times as much."""
    random = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(64, 16, 8, 8, generator=random).bfloat16() for _ in range(2))
    dy = dy + 10
    exact, ours, theirs = (
        x_gradient(layer, x.to(dtype), dy.to(dtype))
        for layer, dtype in (
            (nn.BatchNorm2d(16).double(), torch.float64),
            (lambda given: batch_norm.over_all_ranks(batch_norm.BatchNorm2d(16), given), torch.bfloat16),
            (nn.BatchNorm2d(16), torch.bfloat16),
        )
    )
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()


def x_gradient(layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    layer(x).backward(dy)
    assert x.grad is not None
    return x.grad.double()
