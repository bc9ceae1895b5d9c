"""Learning rates against torch's own schedulers, and what happens when a gradient is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from rela_cli.errors import ConfigError, NonFiniteError
from rela_cli.optim import LARS, Schedule, adamw, non_finite, sgd
from tests.conftest import Rela
from tests.factories import fit, trainer


def rates(schedule: str, total: int, warmup: int, lr: float = 1.0) -> list[float]:
    return [Schedule(lr, schedule, warmup, total).rate(step) for step in range(1, total + 1)]


def torchs(scheduler: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def test_constant() -> None:
    assert rates("constant", 50, 0, 3e-4) == [3e-4] * 50


def test_cosine_is_torchs() -> None:
    assert rates("cosine", 80, 0) == pytest.approx(
        torchs(lr_scheduler.CosineAnnealingLR(optimizer(), 80), 80), abs=1e-9
    )


def test_warmup_is_torchs() -> None:
    warmup = lr_scheduler.LinearLR(optimizer(), start_factor=1 / 11, total_iters=10)
    assert rates("constant", 30, 10) == pytest.approx(torchs(warmup, 30), abs=1e-9)


def test_warmup_then_cosine() -> None:
    made = optimizer()
    parts = [lr_scheduler.LinearLR(made, 1 / 11, 1.0, 10), lr_scheduler.CosineAnnealingLR(made, 70)]
    expected = torchs(lr_scheduler.SequentialLR(made, parts, milestones=[10]), 80)
    assert rates("cosine", 80, 10) == pytest.approx(expected, abs=1e-9)


def test_cosine_ends_just_above_zero_and_starts_at_the_top() -> None:
    found = rates("cosine", 100, 0)
    assert found[0] == 1.0
    assert 0 < found[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert found == sorted(found, reverse=True)


def test_warmup_as_long_as_the_run() -> None:
    assert all(0 < rate <= 1 for rate in rates("cosine", 10, 10) + rates("cosine", 10, 20))


def test_the_trainer_follows_the_schedule() -> None:
    loop = trainer("optimizer.schedule=cosine", "optimizer.warmup_epochs=0.5", "optimizer.lr=0.01", target_dim=None)
    seen: list[float] = []
    fit(loop, lambda: seen.append(loop.optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([Schedule(0.01, "cosine", 2, 8).rate(step) for step in range(1, 9)])


def test_weight_decay_and_update_are_adamws() -> None:
    """Decoupled decay, bias-corrected moments (Loshchilov and Hutter 2019), by hand for two steps."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    made = adamw([weight], lr=0.1, weight_decay=0.5)
    w, m, v = weight.detach().double(), torch.zeros(2).double(), torch.zeros(2).double()
    for step, gradient in enumerate([[0.5, 0.1], [-1.0, 2.0]], start=1):
        weight.grad = torch.tensor(gradient)
        made.step()
        g = torch.tensor(gradient).double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w * (1 - 0.1 * 0.5) - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(weight.detach().double(), w, atol=1e-6)


def made_sgd(weights: Sequence[nn.Parameter], **options: object) -> torch.optim.SGD:
    defaults = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.5, "decay_norm_and_bias": True}
    return sgd(weights, **{**defaults, **options})  # type: ignore[arg-type]


def made_lars(weights: Sequence[nn.Parameter], **options: object) -> LARS:
    defaults = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5, "trust_coefficient": 0.02}
    return LARS(weights, **{**defaults, "exclude_bias_and_norm": True, "clip": False, **options})  # type: ignore[arg-type]


GRADIENTS = [[0.5, 0.1], [-1.0, 2.0], [0.3, 0.0]]


@pytest.mark.parametrize(("nesterov", "momentum"), [(False, 0.0), (False, 0.9), (True, 0.9)])
def test_sgd_by_hand(nesterov: bool, momentum: float) -> None:
    """Sutskever et al. 2013 in torch's form, decay inside the gradient."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    made = made_sgd([weight], momentum=momentum, nesterov=nesterov)
    w, m = weight.detach().double(), torch.zeros(2).double()
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient)
        made.step()
        g = torch.tensor(gradient).double() + 0.5 * w
        m = momentum * m + g
        w = w - 0.1 * (g + momentum * m if nesterov else m)
        assert torch.allclose(weight.detach().double(), w, atol=1e-6)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match=r"nesterov=true needs optimizer.momentum above 0"):
        made_sgd([nn.Parameter(torch.zeros(1))], nesterov=True, momentum=0.0)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_lars_by_hand(exclude: bool, clip: bool) -> None:
    """You et al. 2017, equation 6, on a matrix and a bias; LARC's cap is min(trust, lr)."""
    matrix, bias = nn.Parameter(torch.tensor([[3.0, -4.0]])), nn.Parameter(torch.tensor([0.5]))
    made = made_lars([matrix, bias], exclude_bias_and_norm=exclude, clip=clip, trust_coefficient=0.2)
    state = [[p.detach().double(), torch.zeros_like(p).double()] for p in (matrix, bias)]
    for gradient in GRADIENTS:
        matrix.grad, bias.grad = torch.tensor([gradient]), torch.tensor(gradient[:1])
        made.step()
        for i, g in enumerate((torch.tensor([gradient]).double(), torch.tensor(gradient[:1]).double())):
            w, m = state[i]
            rate = 0.1
            if i == 0 or not exclude:
                trust = 0.2 * w.norm() / (g.norm() + 0.5 * w.norm())
                g = g + 0.5 * w
                rate = min(trust, 0.1) if clip else 0.1 * trust
            m = 0.9 * m + g * rate / 0.1
            state[i] = [w - 0.1 * m, m]
        assert torch.allclose(matrix.detach().double(), state[0][0], atol=1e-6)
        assert torch.allclose(bias.detach().double(), state[1][0], atol=1e-6)


def test_lars_takes_a_plain_step_where_a_norm_is_zero() -> None:
    zero, still = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.ones(1, 2))
    made = made_lars([zero, still], weight_decay=0.0)
    zero.grad, still.grad = torch.ones(1, 2), torch.zeros(1, 2)
    made.step()
    assert torch.allclose(zero, torch.full((1, 2), -0.1))
    assert torch.equal(still, torch.ones(1, 2))


OPTIMIZERS = {
    "adamw": lambda weights: adamw(weights, lr=0.1, weight_decay=0.5),
    "sgd": made_sgd,
    "nesterov": lambda weights: made_sgd(weights, nesterov=True),
    "lars": made_lars,
    "clipped": lambda weights: made_lars(weights, clip=True),
}


@pytest.mark.parametrize("bad_step", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_held_back_never_was(name: str, bad_step: int) -> None:
    """With found_inf at 1 weights and memory stay, bit by bit, and the steps after it are as without it."""
    runs = []
    for gradients in (GRADIENTS, [*GRADIENTS[: bad_step - 1], [math.nan, math.inf], *GRADIENTS[bad_step - 1 :]]):
        weights = [nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.tensor([0.5]))]
        made = OPTIMIZERS[name](weights)
        for gradient in gradients:
            weights[0].grad, weights[1].grad = torch.tensor([gradient]), torch.tensor(gradient[:1])
            made.found_inf = non_finite(weights)
            made.step()
        runs.append([*weights, *(v for p in weights for v in made.state[p].values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert len(runs[0]) > 2


@pytest.mark.parametrize("kind", [adamw, made_sgd])
def test_norms_and_biases_can_be_spared_the_decay(kind: Callable[..., torch.optim.Optimizer]) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    made = kind(list(module.parameters()), lr=0.1, weight_decay=0.5, decay_norm_and_bias=False)
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert moved == [True, False, False, False]
    everything = kind(list(module.parameters()), lr=0.1, weight_decay=0.5, decay_norm_and_bias=True)
    everything.step()
    assert not torch.equal(before[2], next(module[1].parameters()))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_heads_that_wake_in_phase_2_are_trained_then(name: str) -> None:
    """Phase 1 gives them no gradient, so an optimizer first meets them in the middle of the run."""
    loop = trainer(f"optimizer={name}", "optimizer.warmup_epochs=0", "switch=fixed", "switch.at=0.5", "method=byol")
    heads = [p for n, p in loop.trainee.method.named_parameters() if n.startswith("predictor.")]
    start, seen = [p.detach().clone() for p in heads], []
    fit(loop, lambda: seen.append(all(torch.equal(a, b) for a, b in zip(start, heads, strict=True))))
    assert seen == [True] * 4 + [False] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_seen(value: float) -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    for weight in weights[:2]:
        weight.grad = torch.ones_like(weight)
    assert non_finite(weights) == 0
    weights[1].grad[1, 0] = value
    assert non_finite(weights) == 1


def poison(loop: object, at_step: int) -> None:
    """A NaN in the targets' batch of one step."""
    loss_of, calls = loop.loss_of, [0]  # type: ignore[attr-defined]

    def poisoned(*arguments: object) -> torch.Tensor:
        calls[0] += 1
        loss = loss_of(*arguments)
        return loss * math.nan if calls[0] == at_step else loss

    loop.loss_of = poisoned  # type: ignore[attr-defined]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize(("at_step", "phase", "epoch"), [(1, 1, 1), (3, 1, 1), (6, 2, 2)])
def test_a_bad_update_is_withheld_and_named(at_step: int, phase: int, epoch: int, optimizer: str) -> None:
    loop = trainer("switch=fixed", "switch.at=0.5", "method=byol", f"optimizer={optimizer}")
    poison(loop, at_step)
    good: list[dict[str, torch.Tensor]] = [copy_of(loop)]
    with pytest.raises(
        NonFiniteError, match=rf"step {at_step} \(phase {phase}, epoch {epoch}, samples \d+, "
    ) as caught:
        fit(loop, lambda: good.append(copy_of(loop)))
    assert caught.value.exit_code == 4
    assert len(good) == at_step + 1
    assert all(torch.equal(good[-1][name], good[-2][name]) for name in good[-1])


def copy_of(loop: object) -> dict[str, torch.Tensor]:
    """Trainable parameters, and what the optimizer remembers of them."""
    trainee, made = loop.trainee, loop.optimizer  # type: ignore[attr-defined]
    weights = {n: p.detach().clone() for n, p in trainee.named_parameters() if p.requires_grad}
    memory = {
        f"{i}.{name}": value.clone()
        for i, state in made.state_dict()["state"].items()
        for name, value in state.items()
        if float(state.get("step", 1)) > 0
    }
    return {**weights, **memory}


def test_with_seldom_looks_the_first_bad_step_is_named_and_nothing_is_spoilt() -> None:
    loop = trainer("method=byol", "runtime.read_every_steps=8", target_dim=None)
    poison(loop, 3)
    seen: list[dict[str, torch.Tensor]] = []
    with pytest.raises(NonFiniteError, match=r"step 3 \(phase 2, epoch 1"):
        fit(loop, lambda: seen.append(copy_of(loop)))
    assert all(torch.equal(seen[2][name], seen[1][name]) for name in seen[1])
    assert all(value.isfinite().all() for value in seen[-1].values())


@pytest.mark.parametrize("prior", ["none", "random"])
def test_an_absurd_rate_ends_with_4(rela: Rela, tmp_path: Path, prior: str) -> None:
    words = ["dataset=fake", "dataset.n=64", "learner.width=4", "runtime.threads=1", "epochs=3", "prior.width=4"]
    words = words if prior == "random" else words[:-1]
    done = rela("train", *words, f"prior={prior}", "batch_size=16", "optimizer.lr=1e20")
    assert done.returncode == 4, done.stderr
    assert "NaN or Inf in the gradients of step" in done.stderr
    assert "1e+20" in done.stderr
    manifest = json.loads(next((tmp_path / "outputs" / "runs").glob("fake*/manifest.json")).read_text())
    assert manifest["status"] == "failed"
    assert not list((tmp_path / "outputs" / "runs").glob("*/result.json"))


@pytest.mark.parametrize(
    ("value", "is_bad"), [(1e30, False), (float("inf"), True), (-float("inf"), True), (float("nan"), True)]
)
def test_large_gradients_are_not_taken_for_infinite_ones(value: float, is_bad: bool) -> None:
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    for weight in weights[:2]:
        weight.grad = torch.tensor([1.0, value, -1.0])
    assert non_finite(weights).item() == is_bad
