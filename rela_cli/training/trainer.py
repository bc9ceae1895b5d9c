"""The training loop: matching to the targets first, then the method itself (ReLA-F in the paper)."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from itertools import chain, islice

import torch
from torch import Tensor, nn

from rela_cli.config.lengths import Lengths
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import FRESH, Config
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import load, side_of
from rela_cli.data.batches.subset import batches
from rela_cli.data.batches.views import Augment, Place, Views
from rela_cli.distributed import pulse, ranks
from rela_cli.distributed.batch_norm import share_running_statistics
from rela_cli.machine.device import pick_device
from rela_cli.machine.precision import tf32, trains_in
from rela_cli.machine.progress import Progress
from rela_cli.machine.signals import deferred
from rela_cli.optim import Schedule, build_optimizer, forget, non_finite
from rela_cli.store.files import Facts
from rela_cli.switch import Switch
from rela_cli.training.checkpoint import Checkpoints, Saved
from rela_cli.training.goals import VIEWS, Goals, Targets
from rela_cli.training.graph import graphed_step
from rela_cli.training.linear_probe import linear_probe
from rela_cli.training.logs import Metrics, Trace
from rela_cli.training.meter import Meter
from rela_cli.training.readings import NOTHING_READ, Readings
from rela_cli.training.resume import Checkpointing, Position
from rela_cli.training.trainee import Sizes, phase_module, prepared_trainee
from rela_cli.training.watch import Watch


class Trainer:
    """One training run: its parts and the loop. Shapes: B samples of a batch, k target_dim, S pixels."""

    def __init__(self, config: Config, lengths: Lengths, train: Split, goals: Goals | None, data: ImageStats) -> None:
        """Phase 1 matches the learner to `goals`; without any there is the method alone."""
        self.config, self.lengths, self.data = config, lengths, data
        self.device = pick_device(config.runtime)
        self.is_tf32 = trains_in(config.runtime, self.device) == "tf32"
        self.images = train.images.to(self.device) if isinstance(train.images, Tensor) else train.images
        self.labels = None if train.labels is None else train.labels.to(self.device)
        self.goals = goals and goals.on(self.device)
        self.sizes = sizes_of(train, goals, data)
        self.trainee = prepared_trainee(config, self.sizes, self.device)
        self.trainable = [p for p in self.trainee.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, self.trainable)
        self.switch = switch_of(config, lengths, self.device) if goals else None
        self.schedule = Schedule.of(config.optimizer, lengths, self.switch.warmup_epochs if self.switch else 0.0)
        self.views = self.drawn_views()
        self.position = Position(phase=1 if goals else 2)
        self.linear = linear_probe(config, self.trainee.method.backbone, self.sizes.classes, self.device)
        self.meter, self.watch = Meter(config.batch_size), Watch(config, lengths, self.position)
        self.readings = Readings(config.runtime.read_every_steps or (1 if self.device.type == "cpu" else 10))
        self.trace: Trace | None = None
        held = (self.position, self.trainee, self.optimizer, self.switch, self.linear, self.meter)
        self.checkpointing = Checkpointing(lengths, self.device, self.readings, *held)
        self.start_phase(self.position.phase)
        self.graph = graphed_step(self)  # takes the steps, where runtime.step says so

    def drawn_views(self) -> dict[int, Views]:
        """What draws the views of each phase; view i of a sample has a stream of its own."""
        config, data = self.config, self.data
        mean, std = data.mean.to(self.device), data.std.to(self.device)
        fixed, flip = (data.size, mean, std, config.seed), config.dataset.options.get("flip", True)
        kinds = {1: [config.matching.view] * VIEWS, 2: self.trainee.method.views}
        augments = {phase: [Augment(v, *fixed, i, flip) for i, v in enumerate(kind)] for phase, kind in kinds.items()}
        return {phase: Views(some, self.lengths.train_samples) for phase, some in augments.items()}

    def begin(self, checkpoints: Checkpoints, saved: Saved | None) -> None:
        """Start the clocks and the trace of the switch, and take up the training that was saved.

        Raises:
            RelaError: what was saved does not fit this run.
        """
        is_traced = self.switch is not None and ranks.is_first()
        self.trace = Trace(checkpoints.folder / "switch.jsonl") if is_traced else None
        self.checkpointing.begin(self.config, checkpoints, self.trace, saved)
        if saved:
            self.start_phase(self.position.phase)

    # ------------------------------------------------------------------------------------------- the loop

    def fit(self, metrics: Metrics) -> None:
        """Train all epochs that are left, and write a record every few epochs.

        Raises:
            NonFiniteError: a gradient was NaN or Inf; that update was not applied.
            CollapseError: all images look alike to the learner, and on_collapse=stop.
            Stopped: a signal has come; the training is saved.
        """
        self.trainee.train()
        with Progress("train", self.lengths.total_steps) as progress, deferred() as signals:
            for epoch, batches in zip(self.epochs_left(), epochs_drawn(self), strict=True):
                for batch, images in self.meter.waiting(batches):  # draw the batch
                    self.read_now_and_then()
                    self.checkpointing.save_or_stop(signals, self.read)
                    self.start_step()
                    self.ask_switch()
                    parts = parts_of(batch, images, self.config.accumulate, self.module)
                    losses = [self.add_gradients(rows, some, epoch) for rows, some in parts]
                    self.update()
                    self.keep(self.checkpointing.mean_over_ranks(reduce(operator.add, losses), signals))
                    name = "matching" if self.position.phase == 1 else self.config.method.name
                    progress.show(self.position.step, self.meter.words(name, self.linear))
                if self.is_due(epoch, self.config.runtime.log_every_epochs):
                    metrics.write(self.record(epoch))
                    self.meter.restart()
            pulse.at("the end of training")
            self.checkpointing.save_or_stop(signals, self.read)

    def epochs_left(self) -> range:
        """The epochs, from 0, that have steps to come."""
        return range(self.position.step // self.lengths.steps_per_epoch, self.config.epochs)

    def draw_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch that are left: sample indices (B,) and images (B, 3, S, S) uint8 of this rank."""
        return load(self.images, self.rank_batches(epoch, steps_taken(self, epoch)), self.device)

    def rank_batches(self, epoch: int, taken: int = 0) -> Iterator[Tensor]:
        """This rank's sample indices (B,) of each step of an epoch but the `taken` first."""
        return map(ranks.share, batches(self.config.seed, epoch, self.lengths, self.config.batch_size, taken))

    def start_step(self) -> None:
        """Count the step, and forget the gradients of the step before."""
        self.position.step += 1
        pulse.at(f"step {self.position.step} of {self.lengths.total_steps}", in_steps=True)
        if self.config.runtime.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the step before may be overwritten from here on
        self.optimizer.zero_grad(set_to_none=True)

    def ask_switch(self) -> None:
        """Leave phase 1 for good when the switch says so; it is asked every few steps on a GPU, at each on the CPU."""
        if self.position.phase == 2 or self.switch is None:
            return
        read = self.readings.last if self.readings.step == self.position.step - 1 else NOTHING_READ
        self.switch.check(read.coming)
        if read.leaves:
            self.position.switch_step = self.position.step
            self.start_phase(2)
            if self.switch.moments == FRESH:
                forget(self.optimizer)

    def start_phase(self, phase: int) -> None:
        """Choose what this phase trains; the backward pass averages its gradients over all ranks."""
        self.position.phase = phase
        if phase == 2:
            self.goals = None  # neither the prior's weights nor its targets are needed any more
        part = phase_module(self.trainee, phase)
        has_idle = phase == 2 and self.trainee.method.has_idle
        hook = self.config.runtime.gradient_hook
        self.module: nn.Module = part if ranks.world() == 1 else ranks.data_parallel(part, has_idle, hook)

    def make_views(self, images: Tensor, rows: Tensor, epoch: int) -> list[Tensor]:
        """Images (B, 3, S, S) uint8 of the samples `rows` (B,) -> the views of the phase, each (B, 3, H, W)."""
        started = time.perf_counter()
        views = self.views[self.position.phase](images, rows, epoch, self.places_of(rows, epoch))
        if self.device.type == "cpu":  # a GPU makes them later, while the host goes on
            self.meter.waited += time.perf_counter() - started
        return views

    def places_of(self, rows: Tensor, epoch: int) -> Sequence[Place]:
        """Where the views of phase 1 are cut from their images, where their targets depend on that."""
        if self.goals is None or self.position.phase == 2:
            return ()
        side = side_of(self.images)
        return self.goals.places(rows, epoch, self.views[1], torch.Size((side, side)))

    def loss_of(self, views: Sequence[Tensor], rows: Tensor, epoch: int) -> Tensor:
        """The scalar loss of the phase, of this rank's samples."""
        return self.loss_with(views, self.targets_of(views, rows, epoch), self.labels_of(rows))

    def loss_with(self, views: Sequence[Tensor], targets: Targets | None, labels: Tensor | None) -> Tensor:
        """The loss of views and of what they are compared to: targets in phase 1, labels or nothing in phase 2."""
        if self.position.phase == 1:
            return self.module(views, targets)  # type: ignore[no-any-return]
        return self.module(views) if labels is None else self.module(views, labels)  # type: ignore[no-any-return]

    def add_gradients(self, rows: Tensor, images: Tensor, epoch: int) -> Tensor:
        """Add this part's share of the batch's gradients; its share of the loss."""
        if self.graph is not None:
            return self.graph(rows, images, epoch)
        views = self.make_views(images, rows, epoch)
        with tf32(self.is_tf32), self.listening() as found:
            loss = self.loss_of(views, rows, epoch)
            loss = loss / self.config.accumulate if self.config.accumulate > 1 else loss
            loss.backward()  # type: ignore[no-untyped-call]
        self.probe(found, rows)
        return loss.detach()

    def listening(self) -> AbstractContextManager[list[Tensor]]:
        """Inside, the representations of the views are noted, where there is a linear probe to learn from them."""
        return self.linear.listening() if self.linear else nullcontext([])

    def probe(self, found: Sequence[Tensor], rows: Tensor) -> None:
        """Let the linear probe learn from representations of the samples `rows` (B,), where there is one."""
        if self.linear and self.labels is not None:
            self.linear.learn(found, self.labels[rows])

    def targets_of(self, views: Sequence[Tensor], rows: Tensor, epoch: int) -> Targets | None:
        """In phase 1 what these views of samples (B,) are compared to."""
        if self.goals is None or self.position.phase == 2:
            return None
        return self.goals.of(views, rows, epoch, self.places_of(rows, epoch))

    def labels_of(self, rows: Tensor) -> Tensor | None:
        """(B,) in phase 2 of a method that uses them."""
        wanted = self.position.phase == 2 and self.trainee.method.uses_labels
        return self.labels[rows] if wanted and self.labels is not None else None

    def update(self) -> None:
        """Apply the gradients unless one is not finite, without asking the device; then move the target network."""
        self.schedule.set_rate(self.optimizer, self.position.step, self.position.switch_step)
        self.optimizer.found_inf = non_finite(self.trainable)  # type: ignore[attr-defined]  # 1: no update
        self.optimizer.step()
        share_running_statistics(self.trainee)
        self.trainee.method.after_step(self.position.step / self.lengths.total_steps)

    def keep(self, loss: Tensor) -> None:
        """Keep what the host will read of the step, its loss over all ranks with it; in phase 1 the switch sees it."""
        self.meter.steps += 1
        self.readings.losses.append(loss)
        self.readings.bad.append(self.optimizer.found_inf)  # type: ignore[attr-defined]
        if self.position.phase == 1 and self.switch is not None:
            self.switch.observe(loss)
            self.readings.states.append(self.switch.state)

    def read_now_and_then(self) -> None:
        """Read what the device has kept: after each step on the CPU, every few steps on a GPU."""
        if self.position.step % self.readings.every == 0:
            self.read()

    def read(self) -> None:
        """Read it now, by one copy, unless that is done.

        Raises:
            NonFiniteError: a gradient was NaN or Inf.
        """
        if self.readings.step == self.position.step:
            return
        coming = self.switch.checked() if self.switch is not None and self.position.phase == 1 else None
        found = self.readings.read(coming, self.linear.tally if self.linear else None)
        self.readings.step = self.position.step
        self.watch.must_be_finite(found.bad)
        self.meter.add(found.losses)
        if self.linear:
            self.linear.known = found.linear
        if self.trace and found.averages is not None:
            self.trace.add(found.losses, found.averages)

    # ---------------------------------------------------------------------------------------- the records

    def is_due(self, epoch: int, every: int) -> bool:
        """Whether an epoch is one of each `every`, or the last; never when `every` is 0."""
        return bool(every) and ((epoch + 1) % every == 0 or epoch + 1 == self.config.epochs)

    def record(self, epoch: int) -> Facts:
        """A line of metrics.jsonl."""
        self.read()
        if self.trace:
            self.trace.flush()
        at, averages = self.position, self.readings.last.averages
        rho = float(averages[-1, 2]) if averages is not None and at.phase == 1 else None
        facts: Facts = {"step": at.step, "epoch": epoch + 1, "phase": at.phase, **self.meter.read(), "rho": rho}
        facts |= self.linear.facts() if self.linear else {}
        facts["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.is_due(epoch, self.config.runtime.eval_every_epochs):
            facts |= self.watch.look(self.trainee.method, self.images, self.labels, self.data)
        return facts


def epochs_drawn(loop: Trainer) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Of each epoch that is left what `draw_batches` gives; while one ends, images on disk are decoded for the next."""
    epochs = loop.epochs_left()
    if isinstance(loop.images, Tensor):
        return map(loop.draw_batches, epochs)
    rows = chain.from_iterable(loop.rank_batches(epoch, steps_taken(loop, epoch)) for epoch in epochs)
    every = load(loop.images, rows, loop.device)
    return (islice(every, loop.lengths.steps_per_epoch - steps_taken(loop, epoch)) for epoch in epochs)


def steps_taken(loop: Trainer, epoch: int) -> int:
    """How many steps of an epoch lie behind."""
    return max(0, loop.position.step - epoch * loop.lengths.steps_per_epoch)


def sizes_of(train: Split, goals: Goals | None, data: ImageStats) -> Sizes:
    """What the networks are built for."""
    classes = None if train.labels is None else int(train.labels.max()) + 1
    if goals is None:
        return Sizes(data.size, classes=classes)
    return Sizes(data.size, goals.width, classes, goals.token_width)


def switch_of(config: Config, lengths: Lengths, device: torch.device) -> Switch:
    """The rule that ends phase 1."""
    return instantiate(config.switch, total_steps=lengths.total_steps, device=device)  # type: ignore[no-any-return]


def parts_of(batch: Tensor, images: Tensor, count: int, module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in `count` equal parts; ranks exchange the sum of the gradients of `module` in the last one."""
    *first, last = zip(batch.chunk(count), images.chunk(count), strict=True)
    for part in first:
        if ranks.world() == 1:
            yield part
        else:
            with module.no_sync():  # type: ignore[operator]
                yield part
    yield last
