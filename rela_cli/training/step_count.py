"""What a training step launches on a GPU, and where the host waits for it, counted on any machine by a fake GPU.

Forward, update and the rest run on tensors that say `cuda`; the backward pass, which needs a driver there, runs on CPU
tensors through the same code (both views in one pass, bf16). Kernels, their numbers and their speed are not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    unset_fake_temporarily,
)

from rela_cli.config.lengths import Lengths
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import load
from rela_cli.data.batches.tokens import TokenTargets
from rela_cli.distributed.batch_norm import is_known
from rela_cli.distributed.ranks import norm_groups
from rela_cli.learners.build import build_backbone
from rela_cli.machine.device import synchronize
from rela_cli.machine.fake_gpu import Counted, fake_cuda, moved
from rela_cli.training import trainee, trainer
from rela_cli.training.goals import Goals
from rela_cli.training.trainee import Sizes, take_views_together

STEP_PARTS = ("batch", "switch", "views", "forward", "backward", "probe", "update", "keep")  # of a step, in order
READ = "read"  # of every few steps, by which the host learns of them
COUNTED_BATCHES = 4  # of an epoch that is made up
WARM_STEPS = {"cuda": 1, "cpu": 0}  # until what is made once has been made; a backward pass makes nothing
TIMED_STEPS, WARM_TIMED_STEPS = 100, 20  # the first are not timed: kernels are chosen in them


@dataclass(frozen=True)
class StepCount:
    """Operators of each part of a step, every place where the host waits, and the operators and waits of a read."""

    operators: dict[str, int]
    waits: list[str]
    by_name: dict[str, dict[str, int]]
    read: int
    read_waits: list[str]

    @property
    def total(self) -> int:
        """All operators of the step."""
        return sum(self.operators.values())


def count_step(config: Config, phase: int, sizes: Sizes) -> StepCount:
    """Counts of one later step of a phase, as `Trainer.fit` takes it, without the reads of every few steps.

    Raises:
        RuntimeError: tensors of two devices meet.
    """
    parts = walked(config, phase, sizes, "cuda")
    parts["backward"] = walked(config, phase, sizes, "cpu")["backward"]
    found = {part: parts[part] for part in STEP_PARTS if part in parts}
    waits = [f"{part}: {wait}" for part, counted in found.items() if part != "backward" for wait in counted.waits]
    read = parts.get(READ, Counted())
    return StepCount(
        {part: counted.total for part, counted in found.items()},
        waits,
        {part: dict(counted.operators.most_common()) for part, counted in found.items()},
        read.total,
        read.waits,
    )


def walked(config: Config, phase: int, sizes: Sizes, kind: str) -> dict[str, Counted]:
    """The parts of a step on a fake device of a kind."""
    rows = [torch.arange(config.batch_size) + i * config.batch_size for i in range(COUNTED_BATCHES)]
    with on_a_fake(kind):
        loop = a_trainer(config, phase, sizes, kind)
        batches = load(loop.images, rows, loop.device)
        for given in islice(batches, WARM_STEPS[kind]):
            count_parts(loop, given, kind)
        with Counted(kind) as batch:
            given = next(batches)
        return {"batch": batch, **count_parts(loop, given, kind)}


@contextmanager
def on_a_fake(kind: str) -> Iterator[None]:
    """Inside, trainers are on a fake device of a kind; backbones are built with values, which some libraries read."""

    def built(*given: Any) -> nn.Module:
        with unset_fake_temporarily():
            backbone = build_backbone(*given)
        return moved(backbone, mode.from_tensor)

    on_kind = mock.patch.object(trainer, "pick_device", lambda runtime: torch.device(kind))
    with fake_cuda() as mode, on_kind, mock.patch.object(trainee, "build_backbone", built):
        yield


def a_trainer(config: Config, phase: int, sizes: Sizes, kind: str) -> trainer.Trainer:
    """A trainer without values, in a phase, on images that are black."""
    count, bf16 = COUNTED_BATCHES * config.batch_size, replace(config.runtime, precision="bf16", device="auto")
    config = replace(config, runtime=bf16 if config.runtime.precision == "auto" else config.runtime)
    pixels = torch.zeros(count, 3, sizes.image, sizes.image, dtype=torch.uint8)
    data = ImageStats(torch.full((3,), 0.5), torch.full((3,), 0.25), sizes.image)
    labels: Any = Labels(count, sizes.classes) if sizes.classes else None
    lengths = Lengths(count, count, COUNTED_BATCHES, 100 * COUNTED_BATCHES, 100 * count)
    goals = blank_goals(config, count, sizes) if phase == 1 else None
    loop = trainer.Trainer(config, lengths, Split(pixels, labels), goals, data)
    if kind == "cpu" and is_known(loop.trainee):
        take_views_together(loop.trainee, norm_groups(config.runtime.norm, config.runtime.devices))
        loop.start_phase(phase)
    loop.trainee.train()
    return loop


def blank_goals(config: Config, count: int, sizes: Sizes) -> Goals | None:
    """Those of so many images without any content."""
    if not sizes.target:
        return None
    targets = torch.zeros(count, sizes.target, dtype=torch.float16)
    if not config.has_tokens:
        return Goals(targets)
    return Goals(targets, tokens=TokenTargets.blank(count, config.extract.token_grid**2, sizes.target, sizes.image))


def timed_step(config: Config, phase: int, sizes: Sizes, kind: str, steps: int = TIMED_STEPS) -> float:
    """Seconds of a step of a phase as `Trainer.fit` takes it, reads included, on a device that is there."""
    loop = a_trainer(config, phase, sizes, kind)
    assert isinstance(loop.images, Tensor)
    loop.images.random_(0, 256)
    rows = [torch.arange(config.batch_size) + i * config.batch_size for i in range(COUNTED_BATCHES)]
    for count in (WARM_TIMED_STEPS, steps):
        synchronize(loop.device)
        started = time.perf_counter()
        for number in range(0, count, COUNTED_BATCHES):
            for given in islice(load(loop.images, rows, loop.device), count - number):
                take_step(loop, *given)
        synchronize(loop.device)
    return (time.perf_counter() - started) / steps


def take_step(loop: trainer.Trainer, rows: Tensor, images: Tensor) -> None:
    """A step that never leaves its phase."""
    loop.read_now_and_then()
    loop.start_step()
    if loop.position.phase == 1 and loop.switch is not None:
        loop.switch.check()
    loss = loop.add_gradients(rows, images, 0)
    loop.update()
    loop.keep(loss)


class Labels:
    """Labels without values, of which the largest is known."""

    def __init__(self, count: int, classes: int) -> None:
        self.count, self.classes = count, classes

    def max(self) -> int:
        return self.classes - 1

    def to(self, device: torch.device) -> Tensor:
        return torch.zeros(self.count, dtype=torch.long, device=device)


def count_parts(loop: trainer.Trainer, given: tuple[Tensor, Tensor], kind: str) -> dict[str, Counted]:
    """One step, part by part. Where the host would need a number, the step ends, and that is noted."""
    rows, images = given
    parts: dict[str, Counted] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        with Counted(kind) as parts[name]:
            return work()

    try:
        loop.start_step()
        if loop.position.phase == 1 and loop.switch is not None:
            part("switch", loop.switch.check)
        views = part("views", lambda: loop.make_views(images, rows, 0))
        with loop.listening() as found:
            loss = part("forward", lambda: loop.loss_of(views, rows, 0))
        if kind == "cpu" or torch.cuda.is_available():
            part("backward", loss.backward)
        else:
            for weight in loop.trainable:
                weight.grad = torch.empty_like(weight)
        if loop.linear:
            part("probe", partial(loop.probe, found, rows))
        part("update", loop.update)
        part("keep", lambda: loop.keep(loss.detach()))
        part(READ, loop.read)
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass  # the operator is among the waits
    return parts
