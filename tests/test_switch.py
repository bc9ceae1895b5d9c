"""The switch against the paper's rule in plain Python, the matching loss against its formula in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rela_cli.config.parts import instantiate
from rela_cli.matching import Matching
from rela_cli.switch import Switch
from tests.factories import config, fit, trainer

CPU = torch.device("cpu")


def switch(*overrides: str, total_steps: int = 5000) -> Switch:
    return instantiate(config(*overrides).switch, total_steps=total_steps, device=CPU)


def first_step_away(watched: Switch, losses: list[float]) -> int | None:
    """Drive it as the loop does: check, ask, step, observe."""
    for step, loss in enumerate(losses, start=1):
        watched.check()
        if watched.should_leave():
            return step
        watched.observe(torch.tensor(loss))
    return None


def paper(losses: list[float], fast_momentum: float = 0.999, slow_momentum: float = 0.99) -> int | None:
    fast, slow = 1.0, 2.0
    for step, loss in enumerate(losses, start=1):
        if math.exp(-max(slow - fast, 0)) >= 0.995:
            return step
        fast = fast_momentum * fast + (1 - fast_momentum) * loss
        slow = slow_momentum * slow + (1 - slow_momentum) * fast
    return None


@pytest.mark.parametrize(("loss", "step"), [(0.3, 2732), (0.5, 2396), (0.8, 1480)])
def test_reference_vectors(loss: float, step: int) -> None:
    assert first_step_away(switch("switch=adaptive", "switch.constants=reference"), [loss] * 3000) == step
    assert paper([loss] * 3000) == step


def test_a_falling_loss_as_in_the_paper() -> None:
    losses = [float(x) for x in 0.2 + 0.8 * np.exp(-np.arange(4000) / 300) + 0.05 * np.sin(np.arange(4000))]
    step = first_step_away(switch("switch=adaptive", "switch.constants=reference"), losses)
    assert step is not None
    assert step == paper(losses)


def test_a_short_run_never_leaves_under_the_reference_constants() -> None:
    watched = switch("switch=adaptive", "switch.constants=reference", total_steps=780)
    assert first_step_away(watched, [0.5] * 780) is None


def test_rho_is_taken_before_the_update() -> None:
    watched = switch("switch=adaptive", "switch.constants=reference")
    watched.check()
    assert watched.state[2].item() == pytest.approx(math.exp(-1), abs=1e-12)
    watched.observe(torch.tensor(0.5))
    assert watched.state[2].item() == pytest.approx(math.exp(-1), abs=1e-12)
    watched.check()
    fast = 0.999 + 0.001 * 0.5
    assert watched.state[2].item() == pytest.approx(math.exp(-(1.98 + 0.01 * fast - fast)), abs=1e-9)


def test_a_loss_that_rises_has_settled_by_all_measures() -> None:
    """The fast average is above the slow one then; rho stays a number from 0 to 1."""
    watched, seen = switch("switch=adaptive", "switch.constants=reference"), []
    for loss in [0.0] * 1500 + [50.0] * 100:
        watched.check()
        seen.append(watched.state[2].item())
        watched.observe(torch.tensor(loss))
    assert watched.state[0] > watched.state[1] and seen[-1] == 1
    assert all(0 <= rho <= 1 for rho in seen)


def test_the_threshold_counts() -> None:
    early = switch("switch=adaptive", "switch.constants=reference", "switch.threshold=0.9")
    assert first_step_away(early, [0.5] * 3000) < 2396


@pytest.mark.parametrize("total", [400, 4000])
def test_share_constants_mean_the_same_at_any_length(total: int) -> None:
    watched = switch("switch=adaptive", "switch.constants=share", total_steps=total)
    step = first_step_away(watched, [0.5] * total)
    assert step == paper([0.5] * total, watched.fast_momentum, watched.slow_momentum)
    assert step is not None
    long = switch("switch=adaptive", "switch.constants=share", total_steps=16 * total)
    assert first_step_away(long, [0.5] * 16 * total) / (16 * total) == pytest.approx(step / total, abs=0.02)


def test_share_constants_have_the_reference_ratio() -> None:
    watched = switch("switch=adaptive", "switch.constants=share")
    times = [-1 / math.log(m) for m in (watched.fast_momentum, watched.slow_momentum)]
    assert times[0] / times[1] == pytest.approx(10)
    assert 0 < times[0] < 5000


@pytest.mark.parametrize(("at", "total", "first"), [(0.5, 780, 391), (0.29, 100, 30), (0.0, 10, 1), (0.57, 100, 58)])
def test_fixed(at: float, total: int, first: int) -> None:
    assert first_step_away(switch("switch=fixed", f"switch.at={at}", total_steps=total), [0.5] * total) == first


def test_fixed_at_one_and_never_stay() -> None:
    assert first_step_away(switch("switch=fixed", "switch.at=1", total_steps=50), [0.0] * 50) is None
    assert first_step_away(switch("switch=never", total_steps=50), [0.0] * 50) is None


def test_leaving_is_for_good() -> None:
    watched = switch("switch=adaptive", "switch.constants=reference")
    for _ in range(2396):
        watched.check()
        watched.observe(torch.tensor(0.5))
    assert watched.should_leave()
    watched.check()
    assert watched.state[4] == 2396, "the first time counts"
    watched.observe(torch.tensor(-1e4))  # fast falls far below slow
    watched.check()
    assert watched.state[2] < 0.1
    assert watched.should_leave()
    assert watched.state[4] == 2396


def test_the_trainer_changes_phase_at_that_step() -> None:
    loop = trainer("switch=fixed", "switch.at=0.5", "epochs=2")
    phases = []
    fit(loop, lambda: phases.append(loop.position.phase))
    assert phases == [1] * 4 + [2] * 4
    assert loop.position.switch_step == 5


# ------------------------------------------------------------------------------------------------------ matching


def test_matching_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    matching = Matching(12, 7, "trained")
    views, targets = [torch.randn(9, 12) for _ in range(2)], torch.randn(9, 7)
    weight, bias = (p.detach().double().numpy() for p in (matching.transfer.weight, matching.transfer.bias))
    y, expected = targets.double().numpy(), 0.0
    for view in views:
        t = view.double().numpy() @ weight.T + bias
        cosine = (t * y).sum(1) / np.linalg.norm(t, axis=1) / np.linalg.norm(y, axis=1)
        expected += float(np.mean(1 - cosine)) / 2
    assert matching(views, targets).item() == pytest.approx(expected, abs=1e-6)
    assert matching.double()([v.double() for v in views], targets.double()).item() == pytest.approx(expected, abs=1e-12)


def test_frozen_transfer_has_no_gradient_and_is_no_parameter_of_the_optimizer() -> None:
    for name in ("frozen", "trained"):
        loop = trainer(f"matching.transfer={name}", "switch=never")
        before = loop.trainee.matching.transfer.weight.clone()
        fit(loop, steps=1)
        weight = loop.trainee.matching.transfer.weight
        optimized = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
        assert (id(weight) in optimized) == (name == "trained")
        assert (weight.grad is None) == (name == "frozen")
        assert torch.equal(weight, before) == (name == "frozen")


def test_a_zero_target_gives_no_nan() -> None:
    matching = Matching(5, 3, "trained")
    loss = matching([torch.randn(4, 5)] * 2, torch.zeros(4, 3))
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert matching.transfer.weight.grad.isfinite().all()
