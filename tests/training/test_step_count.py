"""A training step on a GPU, looked at without one: no tensors on two devices meet, nothing waits, launches are few."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from rela_cli.config.compose import compose
from rela_cli.config.schema import Config
from rela_cli.data.batches.boxes import CachedViews
from rela_cli.data.batches.cache import ImageStats
from rela_cli.data.batches.loader import load
from rela_cli.data.batches.tokens import TokenTargets
from rela_cli.machine.fake_gpu import Counted
from rela_cli.training import graph, trainer
from rela_cli.training.goals import Goals
from rela_cli.training.live import LiveTargets
from rela_cli.training.readings import Reading, Readings
from rela_cli.training.step_count import READ, a_trainer, count_parts, count_step, on_a_fake, walked
from rela_cli.training.trainee import Sizes
from rela_cli.transports.identity import Identity
from tests.factories import config

SIZES = Sizes(image=16, target=24, classes=4)
SMALL = ("learner=cifar_resnet", "learner.depth=8", "batch_size=8", "runtime.device=auto")
METHODS = {  # and the operators of a step but for its backward pass
    "byol": 350,
    "dino": 350,
    "simclr": 285,
    "simsiam": 305,
    "moco_v3": 350,
    "barlow_twins": 300,
    "vicreg": 305,
    "swav": 315,
    "supervised": 245,
}
LEARNERS = {  # in a phase, with an optimizer
    ("learner=resnet18", "learner.width=4"): (2, "lars"),
    ("learner=resnet50", "learner.width=4"): (1, "sgd"),
    ("learner=mobilenet_v3",): (2, "sgd"),
    ("learner=timm", "learner.model=resnet10t"): (1, "adamw"),
    ("learner=vit_s16", "learner.model=vit_tiny_patch16_224"): (1, "lars"),
}
BUDGET, LARS_BUDGET = 450, 60
PARTS = {"batch": 2, "switch": 10, "views": 160, "forward": 112, "backward": 152, "probe": 19, "update": 10, "keep": 8}


def small(*words: str) -> Config:
    return config(*SMALL, *words)


def waits(parts: dict[str, Counted]) -> list[str]:
    """Of a step; a read waits once, for its one copy."""
    found = [wait for name, part in parts.items() for wait in part.waits if name != READ]
    copies = parts[READ].waits if READ in parts else []  # a step ends where the host needs a number
    assert found or (len(copies) == 1 and "to cpu at training/readings.py" in copies[0])
    return found


@pytest.mark.parametrize("method", METHODS)
def test_no_method_makes_the_host_wait_or_launches_much(method: str) -> None:
    parts = walked(small(f"method={method}", "probe.in_training=true"), 2, SIZES, "cuda")
    assert waits(parts) == []
    assert METHODS[method] - 90 < sum(part.total for part in parts.values()) <= METHODS[method]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda words: words[-1])
def test_nor_does_a_learner(learner: tuple[str, ...]) -> None:
    phase, optimizer = LEARNERS[learner]
    words = (*learner, "dataset=fake", f"optimizer={optimizer}", "batch_size=4", "switch=adaptive")
    parts = walked(compose(list(words)), phase, Sizes(32, 24, 4), "cuda")
    assert waits(parts) == []
    assert parts["update"].total <= (LARS_BUDGET if optimizer == "lars" else 12)


@pytest.mark.parametrize(
    "words",
    [
        ("switch=fixed", "runtime.precision=tf32", "optimizer=sgd"),
        ("switch=adaptive", "matching=geometric", "optimizer=lars"),
        ("switch=never", "matching.transfer=frozen"),
        ("switch=fixed", "extract.tokens=true", "extract.token_grid=3"),
    ],
)
def test_nor_does_phase_1(words: tuple[str, ...]) -> None:
    assert waits(walked(small(*words), 1, SIZES, "cuda")) == []


def test_launches_of_a_phase_1_step_with_a_resnet_18() -> None:
    """The adaptive switch and the linear probe are part of it."""
    step = count_step(config("learner=resnet18", "batch_size=8", "switch=adaptive", "runtime.device=auto"), 1, SIZES)
    assert step.waits == [] and len(step.read_waits) == 1
    assert {part: n for part, n in step.operators.items() if n > PARTS[part]} == {}
    assert step.operators.keys() == PARTS.keys() and step.total <= BUDGET


@contextmanager
def in_phase_1(*words: str) -> Iterator[tuple[trainer.Trainer, Iterator[tuple[Tensor, Tensor]]]]:
    """A trainer on tensors without values, and its batches."""
    with on_a_fake("cuda"):
        loop = a_trainer(small(*words), 1, SIZES, "cuda")
        yield loop, load(loop.images, [torch.arange(8) + 8 * i for i in range(4)], loop.device)


class Pools(nn.Module):
    """Stands for a prior."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1)[:, :24]


@pytest.mark.parametrize("kind", ["live", "cut before", "cut before, with maps"])
def test_targets_of_the_views_themselves(kind: str) -> None:
    with in_phase_1(*(["extract.tokens=true"] if "maps" in kind else [])) as (loop, batches):
        assert loop.goals is not None
        if kind == "live":
            data = ImageStats(torch.full((3,), 0.5), torch.full((3,), 0.25), SIZES.image)
            live = LiveTargets(Pools(), Identity(), 24, data, torch.float16)  # type: ignore[arg-type]
            loop.goals = replace(loop.goals, live=live)
        else:
            boxes, targets = torch.zeros(32, 3, 5, dtype=torch.int16), torch.zeros(32, 3, 24)
            cached = CachedViews(boxes, targets, seed=0)
            maps = TokenTargets(torch.zeros(32, 3, 9, 24), SIZES.image, SIZES.image) if "maps" in kind else None
            loop.goals = Goals(loop.goals.targets, cached=cached, tokens=maps).on(loop.device)
        count_parts(loop, next(batches), "cuda")  # constants are made once
        assert waits(count_parts(loop, next(batches), "cuda")) == []


def test_the_host_reads_once_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training: 24 steps, 4 an epoch; a read after each ten of them and for the record at the end."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    nothing = Reading(torch.empty(0), torch.empty(0))
    read = Readings.read

    def unread(*given: Any) -> Reading:
        with pytest.raises(RuntimeError):  # the values, which are not there, are asked for once they are on the host
            read(*given)
        for kept in vars(given[0]).values():
            if isinstance(kept, list):
                kept.clear()
        return nothing

    monkeypatch.setattr(Readings, "read", unread)
    with in_phase_1("switch=adaptive", "epochs=6", "runtime.log_every_epochs=6") as (loop, batches):
        epoch = list(batches)
        monkeypatch.setattr(loop, "draw_batches", lambda number: iter(epoch))
        monkeypatch.setattr(loop, "record", lambda epoch: loop.read())
        monkeypatch.setattr(loop.watch, "must_be_finite", lambda bad: None)
        monkeypatch.setattr(loop, "update", lambda: setattr(loop.optimizer, "found_inf", loop.switch.state[4]))  # type: ignore
        count_parts(loop, epoch[0], "cuda")  # constants are made once
        loop.position.step, loop.readings = 0, Readings(loop.readings.every)
        with Counted() as counted:
            loop.fit(mock.Mock())
    assert loop.position.step == 24
    others = [wait for wait in counted.waits if "training/readings.py" not in wait]
    assert others == [] and len(counted.waits) == 3 + 1, "after 0, 10 and 20 steps, and at the end"


@pytest.mark.parametrize("phase", [1, 2])
def test_what_is_left_to_launch_beside_a_graph(phase: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies into the graph's tensors, and what follows it; here the graph is what recorded nothing."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(graph, "WARM_STEPS", 0)
    monkeypatch.setattr(graph, "COMPARED_STEPS", 0)
    with on_a_fake("cuda"):
        loop = a_trainer(small("method=byol", "switch=adaptive"), phase, SIZES, "cuda")
        loop.graph = graph.GraphedStep(loop, lambda work: (work(), lambda: None))
        rows, images = next(load(loop.images, [torch.arange(8)], loop.device))
        for _ in range(2):
            with Counted() as counted:
                loop.add_gradients(rows, images, 0)
    assert counted.waits == []
    assert counted.total <= (10 if phase == 1 else 7)


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


STUB = Path(__file__).with_name("cuda_stub.c")
WITH_BACKWARD = """
import torch
from tests.training.test_step_count import METHODS, SIZES, small, waits
from rela_cli.training.step_count import walked

assert torch.cuda.is_available()
for words, phase in [((), 1), *(((f"method={method}",), 2) for method in METHODS)]:
    parts = walked(small(*words), phase, SIZES, "cuda")
    assert waits(parts) == [] and parts["backward"].total > 30, (words, waits(parts))
    print(words, parts["backward"].total)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the stub of a CUDA runtime, and is not here")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
@pytest.mark.skipif(sys.platform != "linux", reason="the stub is preloaded, which Linux does")
def test_backward_passes_on_the_device_too(tmp_path: Path) -> None:
    """autograd wants a driver, and a stub that does nothing will do."""
    stub = tmp_path / "libcuda.so.1"  # the name under which torch looks for the driver
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", stub, STUB], check=True)
    command = [sys.executable, "-c", WITH_BACKWARD]
    done = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(stub)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(METHODS)
