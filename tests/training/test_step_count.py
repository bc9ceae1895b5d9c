"""A training step on a GPU, looked at without one: no tensors on two devices meet, nothing waits, launches are few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rela_cli.config.schema import Config
from rela_cli.training import trainer
from rela_cli.training.step_count import StepSizes, count_step, walked
from tests.factories import config

SIZES = StepSizes(image=16, target=24, classes=4)
SMALL = ("learner=cifar_resnet", "learner.depth=8", "batch_size=8", "runtime.device=auto")
METHODS = ("byol", "dino", "simclr", "simsiam", "moco_v3", "barlow_twins", "vicreg", "swav", "supervised")
BUDGETS = {"views": 160, "forward": 155, "backward": 195, "update": 15, "switch": 12, "observe": 10, "batch": 2}


def small(*words: str) -> Config:
    return config(*SMALL, *words)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_makes_the_host_wait(method: str) -> None:
    parts = walked(small(f"method={method}"), 2, SIZES, "cuda")
    assert [wait for part in parts.values() for wait in part.waits] == []
    assert parts["forward"].total > 40 and parts["update"].total > 5, "a whole step was walked"


@pytest.mark.parametrize("words", [("optimizer=lars",), ("optimizer=sgd",), ("switch=fixed", "runtime.precision=tf32")])
def test_nor_does_phase_1(words: tuple[str, ...]) -> None:
    parts = walked(small("switch=adaptive", *words), 1, SIZES, "cuda")
    assert [wait for part in parts.values() for wait in part.waits] == []
    assert parts["update"].total <= (65 if words == ("optimizer=lars",) else 15)


def test_launches_of_a_phase_1_step_with_a_resnet_18() -> None:
    step = count_step(config("learner=resnet18", "batch_size=8", "switch=adaptive", "runtime.device=auto"), 1, SIZES)
    assert step.waits == []
    assert {part: n for part, n in step.operators.items() if n > BUDGETS[part]} == {}


READS: dict[str, Callable[[Tensor], Any]] = {
    "_local_scalar_dense": lambda x: x.sum().item(),
    "copy of": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "to cpu": lambda x: x.cpu(),
    "index by a mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("wait", READS)
def test_a_wait_that_is_put_back_is_found(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_views = trainer.Trainer.make_views

    def waiting(self: trainer.Trainer, images: Tensor, rows: Tensor, epoch: int) -> list[Tensor]:
        views = make_views(self, images, rows, epoch)
        READS[wait](views[0])
        return views

    monkeypatch.setattr(trainer.Trainer, "make_views", waiting)
    (found, *_) = walked(small(), 1, SIZES, "cuda")["views"].waits
    assert wait in found


def test_a_tensor_that_is_left_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of = trainer.Trainer.loss_of
    monkeypatch.setattr(trainer.Trainer, "loss_of", lambda self, *given: loss_of(self, *given) + torch.ones(2))
    with pytest.raises(RuntimeError, match="device"):
        walked(small(), 1, SIZES, "cuda")
