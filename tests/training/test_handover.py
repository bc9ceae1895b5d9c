"""The hand-over from matching to the method: the scale of BYOL's loss, the optimizer's memory, the second warm-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.compose import compose
from rela_cli.config.parts import instantiate
from rela_cli.errors import ConfigError
from rela_cli.methods.byol import BYOL
from rela_cli.methods.dino import DINO
from rela_cli.optim import Schedule, forget
from rela_cli.training.trainer import Trainer
from tests.factories import config, fit
from tests.promises.harness import STEPS, SWITCH, Killed, differing, ending, keep_until, small, train, untimed, words

FRESH = (*SWITCH, "switch.moments=fresh")
LAST = 4  # the last step of phase 1 under SWITCH


# ------------------------------------------------------------------------------------ the scale of BYOL's loss


class Flat(nn.Module):
    feature_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def byol(loss: str) -> BYOL:
    torch.manual_seed(0)
    part = config("method=byol", f"method.loss={loss}", "method.hidden_dim=8", "method.projection_dim=6").method
    made: BYOL = instantiate(part, backbone=Flat(), feature_dim=12)
    return made.double()


def test_the_reference_codes_loss_is_the_mean_of_the_negative_cosine() -> None:
    views = list(torch.randn(2, 10, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    ours, theirs = byol("squared_distance"), byol("negative_cosine")
    z1, z2 = theirs.target(views)
    p1, p2 = (theirs.predictor(theirs.projector(h)) for h in theirs.represent(views))
    expected = -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
    torch.testing.assert_close(theirs(views), expected)
    ours(views).backward(), theirs(views).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, 4 * other.grad)


# ------------------------------------------------------------------------------------ the optimizer's memory


def test_fresh_moments_give_the_first_update_of_a_new_optimizer() -> None:
    """torch's own AdamW, made anew, on the same weights and gradients."""
    loop = small(*FRESH)
    before: list[Tensor] = []
    update = loop.update

    def noted() -> None:
        if loop.position.step == LAST + 1:
            before.extend(p.detach().clone() for p in loop.trainable)
        update()

    loop.update = noted  # type: ignore[method-assign]
    fit(loop, steps=LAST + 1)
    assert loop.position.switch_step == LAST + 1
    copies = [nn.Parameter(value) for value in before]
    for copy, own in zip(copies, loop.trainable, strict=True):
        copy.grad = None if own.grad is None else own.grad.clone()
    group = loop.optimizer.param_groups[0]
    torch.optim.AdamW(copies, lr=group["lr"], weight_decay=group["weight_decay"]).step()
    for copy, own in zip(copies, loop.trainable, strict=True):
        torch.testing.assert_close(own, copy)


def test_kept_moments_are_those_of_matching() -> None:
    counts = []
    for moments in ("keep", "fresh"):
        loop = small(*SWITCH, f"switch.moments={moments}")
        fit(loop, steps=LAST + 2)
        weight = next(iter(loop.trainee.method.backbone.parameters()))
        counts.append(int(loop.optimizer.state[weight]["step"]))
    assert counts == [LAST + 2, 2]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_what_is_forgotten_is_all_of_the_memory(optimizer: str) -> None:
    loop = small(f"optimizer={optimizer}", "switch=never")
    fit(loop, steps=2)
    held = [v for memory in loop.optimizer.state.values() for v in memory.values() if isinstance(v, Tensor)]
    assert any(v.abs().max() > 0 for v in held)
    forget(loop.optimizer)
    assert held and all(not v.any() for v in held)


# ------------------------------------------------------------------------------------ the second warm-up


def test_the_rate_rises_again_after_the_switch() -> None:
    schedule = Schedule(0.8, "constant", 0, 20, switch_steps=3)
    assert [schedule.rate(step, 6) for step in range(6, 12)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [schedule.rate(step) for step in range(1, 6)] == pytest.approx([0.8] * 5)
    falling = Schedule(0.8, "cosine", 2, 20, switch_steps=3)
    plain = Schedule(0.8, "cosine", 2, 20)
    assert falling.rate(7, 6) == pytest.approx(0.5 * plain.rate(7)) and falling.rate(15, 6) == plain.rate(15)


def test_the_loop_takes_it_from_the_switch() -> None:
    loop = small(*SWITCH, "switch.warmup_epochs=1", "optimizer.lr=0.004")
    rates: list[float] = []
    fit(loop, lambda: rates.append(loop.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.004] * 4 + [0.001, 0.002, 0.003] + [0.004] * (STEPS - 7))


def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    make: Callable[[], Trainer] = lambda: small(*words("byol"), *FRESH, "switch.warmup_epochs=1")  # noqa: E731
    expected = ending(train(tmp_path / "plain", make()), tmp_path / "plain")
    for step in (4, 5, 7):  # before the switch, after its first step, in its warm-up
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Killed):
            train(folder, make(), every=0, stop=step + 1)
        keep_until(folder, step)
        assert differing(untimed(ending(train(folder, make()), folder)), untimed(expected)) == [], step


# ------------------------------------------------------------------------------------ DINO's temperature


def dino(*overrides: str, epochs: int = 10) -> DINO:
    heads = ("method.hidden_dim=8", "method.projection_dim=6", "method.prototypes=5")
    made: DINO = instantiate(
        config("method=dino", *heads, *overrides).method, backbone=Flat(), feature_dim=12, epochs=epochs
    )
    return made


@pytest.mark.parametrize("epochs", [1, 3, 10, 30])
def test_the_temperature_by_epoch_is_the_authors_table(epochs: int) -> None:
    """An even table over the warm-up's epochs, then the last value; each step of an epoch has its epoch's."""
    method = dino("method.warmup_teacher_temperature=0.04", "method.teacher_temperature=0.07", epochs=epochs)
    method.by = "epoch"
    warmup, steps = round(0.3 * epochs), 7
    table = np.concatenate((np.linspace(0.04, 0.07, warmup), np.full(epochs - warmup, 0.07)))
    found = []
    for step in range(epochs * steps):
        method.progress = step / (epochs * steps)  # what after_step notes after `step` steps
        found.append(method.temperature())
    assert found == pytest.approx(list(np.repeat(table, steps)))


def test_by_step_it_rises_within_an_epoch() -> None:
    method = dino("method.warmup_teacher_temperature=0.04", "method.teacher_temperature=0.07")
    method.progress = 0.15
    assert method.temperature() == pytest.approx(0.055)


def test_the_runs_epochs_reach_the_method() -> None:
    loop = small(*words("dino"), "method.temperature_by=epoch")
    assert isinstance(loop.trainee.method, DINO) and loop.trainee.method.epochs == 3


def test_the_reference_head_has_two_layers_and_the_teacher_its_own() -> None:
    method = dino("method.projector_layers=2", "method.teacher_head=own")
    widths = [(layer.in_features, layer.out_features) for layer in method.head.layers if isinstance(layer, nn.Linear)]
    assert widths == [(12, 8), (8, 6)]
    pairs = [*zip(method.head.parameters(), method.teacher.network[1].parameters(), strict=True)]  # type: ignore[index]
    assert any(not torch.equal(*pair) for pair in pairs)
    views = list(torch.randn(2, 10, 3, 4, 4))
    assert method(views).isfinite()
    backbones = zip(method.backbone.parameters(), method.teacher.network[0].parameters(), strict=True)  # type: ignore[index]
    assert all(torch.equal(*pair) for pair in backbones)


# ------------------------------------------------------------------------------------ presets and names


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tin", "in1k"])
def test_presets_of_the_paper_have_its_codes_scale_and_blur(name: str) -> None:
    options = compose([f"experiment=table1_{name}", "dataset.root=x"]).method.options
    assert options["loss"] == "negative_cosine"
    blurs = (options["view1"].blur_p, options["view2"].blur_p)
    assert blurs == ((0.0, 0.0) if "cifar" in name else (1.0, 0.1))


def test_the_dino_preset_is_the_reference() -> None:
    options = compose(["experiment=table1_cifar10_dino", "dataset.root=x"]).method.options
    expected = {"projector_layers": 2, "teacher_head": "own", "temperature_by": "epoch", "prototypes": 2048}
    assert {key: options[key] for key in expected} == expected
    assert options["view1"].crop_scale == options["view2"].crop_scale == (0.4, 1.0)


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_at_their_defaults_no_identity_has_the_new_keys(method: str) -> None:
    made = config(f"method={method}")
    assert not {"loss", "temperature_by", "projector_layers", "teacher_head"} & made.method.identity.keys()
    assert made.switch.identity.keys() == {"name", "class", "constants", "threshold"}
    changed = config("switch=fixed", "switch.moments=fresh", "switch.warmup_epochs=2")
    assert changed.switch.identity.keys() == {"name", "class", "at", "moments", "warmup_epochs"}


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of keep, fresh"):
        config("switch.moments=new")
    with pytest.raises(ConfigError, match=r"unknown key switch\.moments"):
        config("switch=never", "switch.moments=fresh")
