"""The training loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from rela_cli.config.lengths import Lengths
from rela_cli.config.parts import build
from rela_cli.config.schema import Config, View
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import load
from rela_cli.data.batches.subset import epoch_indices
from rela_cli.data.batches.views import Augment
from rela_cli.distributed import pulse, ranks
from rela_cli.distributed.batch_norm import convert, is_known
from rela_cli.errors import CollapseError, NonFiniteError, RelaError, Stopped
from rela_cli.evaluation.measures import deviation, effective_rank, knn_top1
from rela_cli.evaluation.representation import representations
from rela_cli.learners.build import load_state
from rela_cli.machine import threads
from rela_cli.machine.device import count_flops, peak_memory, pick_device
from rela_cli.machine.precision import in_half, uses_bf16
from rela_cli.machine.progress import Progress
from rela_cli.machine.signals import deferred
from rela_cli.numerics.randomness import key
from rela_cli.optim import lr_at, memory_bytes, non_finite
from rela_cli.store.files import Facts
from rela_cli.switch import Switch
from rela_cli.training.checkpoint import Checkpoints, Saved
from rela_cli.training.logs import Metrics, Trace
from rela_cli.training.meter import Meter
from rela_cli.training.trainee import TRIAL, Matched, Trainee, memory_format
from rela_cli.training.watch import COLLAPSED_DEVIATION, COLLAPSED_RANK, SETTLED, WATCHED, WATCHED_K

COUNTERS = ("step", "phase", "switch_step", "collapsed")  # of a trainer; its state has them by these names


class Trainer:
    """One training run: the parts, the loop, and what it has to say about itself."""

    def __init__(
        self, config: Config, lengths: Lengths, train: Split, targets: Tensor | None, data: ImageStats
    ) -> None:
        self.config, self.lengths, self.data = config, lengths, data
        self.device = pick_device(config.runtime)
        self.images = train.images.to(self.device) if isinstance(train.images, Tensor) else train.images
        self.labels = None if train.labels is None else train.labels.to(self.device)
        self.targets = targets  # mapped from disk: a step takes its own rows only
        classes = None if train.labels is None else int(train.labels.max()) + 1
        target_dim = None if targets is None else targets.shape[1]
        self.trainee = Trainee(config, data.size, target_dim, classes).to(self.device)
        self.trainee.to(memory_format=memory_format(self.trainee, self.device, data.size))
        self.prepare_networks()
        self.trainable = [p for p in self.trainee.parameters() if p.requires_grad]
        self.build_optimizer()
        self.switch: Switch | None = None
        self.trace: Trace | None = None
        if targets is not None:
            self.switch = build(config.switch, total_steps=lengths.total_steps, device=self.device)
        self.read_every = config.runtime.read_every_steps or (1 if self.device.type == "cpu" else 10)
        self.threads = torch.get_num_threads()
        self.step, self.phase = 0, 2 if targets is None else 1
        self.switch_step: int | None = None
        self.collapsed: bool | None = None  # None: nobody has looked
        self.first_bad = torch.zeros((), device=self.device)  # the first step with a non-finite gradient, or 0
        self.meter = Meter(config.batch_size)
        self.checkpoints: Checkpoints | None = None
        self.started, self.seconds = time.perf_counter(), 0.0  # of this process, and the seconds of those before it
        self.peak_before = 0  # bytes, the most that those took
        light, own = [config.matching.view] * 2, list(self.trainee.method.views)
        self.augments = {1: self.augmenters(light), 2: self.augmenters(own)}
        self.leaving = torch.zeros((), device=self.device)  # above 0 once a signal has reached any rank
        self.enter(self.phase)

    def prepare_networks(self) -> None:
        """Batch norms over all ranks; over ranks or on a GPU, views in one pass; on a GPU, networks in bf16."""
        runtime, method = self.config.runtime, self.trainee.method
        together = ranks.world() > 1 or (self.device.type == "cuda" and is_known(self.trainee))
        if together:
            convert(self.trainee)
        method.one_pass = together
        for average in self.trainee.averages():
            average.one_pass = together
        if uses_bf16(runtime, self.device):
            for network in method.networks().values():
                in_half(network, self.device)

    def compile(self) -> None:
        """Let torch.compile have the networks, where that was asked for; FLOPs have to be counted before."""
        mode = self.config.runtime.compile
        if mode != "off":
            for network in self.trainee.method.networks().values():
                network.compile(mode=None if mode == "default" else mode)

    def enter(self, phase: int) -> None:
        """What this phase trains, its gradients averaged over all ranks during the backward pass."""
        self.phase = phase
        part: nn.Module = Matched(self.trainee) if phase == 1 else self.trainee.method
        idle = phase == 2 and self.trainee.method.has_idle
        self.module: nn.Module = part if ranks.world() == 1 else ranks.averaging(part, idle)

    def build_optimizer(self) -> None:
        """The optimizer over all trainable parameters; schedule and warm-up are ours, the rest is its own."""
        options = dict(self.config.optimizer.options)
        self.lr, self.schedule = options["lr"], options.pop("schedule")
        self.warmup_steps = round(options.pop("warmup_epochs") * self.lengths.steps_per_epoch)
        part = replace(self.config.optimizer, options=options)
        self.optimizer: torch.optim.Optimizer = build(part, parameters=self.trainable)
        self.optimizer_bytes = memory_bytes(lambda parameters: build(part, parameters=parameters), self.trainable)

    def augmenters(self, views: Sequence[View]) -> list[Augment]:
        """One augmentation a view; view i of a sample has a stream of its own."""
        mean, std = self.data.mean.to(self.device), self.data.std.to(self.device)
        flip = self.config.dataset.options.get("flip", True)
        return [Augment(v, self.data.size, mean, std, self.config.seed, i, flip) for i, v in enumerate(views)]

    # ------------------------------------------------------------------------------------------- the loop

    def fit(self, metrics: Metrics) -> None:
        """All epochs that are left: draw the subset, take the steps, write a record."""
        self.trainee.train()
        meter = self.meter
        begun, taken = divmod(self.step, self.lengths.steps_per_epoch)
        with Progress("train", self.lengths.total_steps) as progress, deferred() as signals:
            for epoch in range(begun, self.config.epochs):
                batches = self.shares(epoch, taken if epoch == begun else 0)
                for batch, images in meter.waiting(load(self.images, batches, self.device)):
                    self.at_boundary(signals)
                    self.step += 1
                    pulse.at(f"step {self.step} of {self.lengths.total_steps}", in_steps=True)
                    self.maybe_switch()
                    loss, waited = self.take_step(batch, images, epoch)
                    meter.add(self.of_all(loss, signals), waited)
                    self.check_finite()
                    progress.show(self.step, meter.words("matching" if self.phase == 1 else self.config.method.name))
                if self.is_due(epoch, self.config.runtime.log_every_epochs):
                    metrics.write(self.record(epoch, meter))
                    meter.restart()
            pulse.at("the end of training")
            self.at_boundary(signals)

    def batches(self, epoch: int, taken: int = 0) -> Iterator[Tensor]:
        """Sample indices (B,) of each step but the `taken` first; the last partial batch is dropped."""
        order = epoch_indices(self.config.seed, epoch, self.lengths.train_samples, self.lengths.subset_size)
        size = self.config.batch_size
        for start in range(taken * size, self.lengths.steps_per_epoch * size, size):
            yield order[start : start + size]

    def shares(self, epoch: int, taken: int = 0) -> Iterator[Tensor]:
        """This rank's part of each batch."""
        return map(ranks.share, self.batches(epoch, taken))

    def take_step(self, batch: Tensor, images: Tensor, epoch: int) -> tuple[Tensor, float]:
        """One update on images (B, 3, H, W). Returns the loss, on the device, and the seconds its views took."""
        if self.config.runtime.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the step before may be overwritten from here on
        self.optimizer.zero_grad(set_to_none=True)
        parts, loss, waited = self.config.accumulate, torch.zeros((), device=self.device), 0.0
        for number, (rows, some) in enumerate(zip(batch.chunk(parts), images.chunk(parts), strict=True), 1):
            started = time.perf_counter()
            views = [augment(some, rows, epoch) for augment in self.augments[self.phase]]
            waited += time.perf_counter() - started
            with self.apart(number < parts):
                part = self.loss_of(views, rows) / parts
                part.backward()
            loss = loss + part.detach()
        self.update()
        return loss, waited

    def apart(self, wanted: bool) -> AbstractContextManager[None]:
        """Where wanted, gradients stay with their rank: the last part of a step sends them all."""
        is_sent = not wanted or ranks.world() == 1
        return nullcontext() if is_sent else self.module.no_sync()  # type: ignore[operator, no-any-return]

    def of_all(self, loss: Tensor, signals: Sequence[Stopped]) -> Tensor:
        """The loss of all ranks, which the switch sees; with it goes word of a signal, so that all leave together."""
        if ranks.world() > 1:
            loss, self.leaving = ranks.mean_over(torch.stack((loss, loss.new_tensor(float(bool(signals)))))).unbind()
        if self.phase == 1 and self.switch is not None:
            self.switch.observe(loss)
            if self.trace:
                self.trace.add(loss, self.switch)
        return loss

    def loss_of(self, views: Sequence[Tensor], batch: Tensor) -> Tensor:
        """The scalar loss of the phase, of this rank's samples."""
        if self.phase == 1:
            return self.module(views, self.targets_of(batch))  # type: ignore[no-any-return]
        labels = self.labels_of(batch)
        return self.module(views) if labels is None else self.module(views, labels)  # type: ignore[no-any-return]

    def targets_of(self, batch: Tensor) -> Tensor | None:
        """(B, k) in phase 1."""
        if self.phase == 2 or self.targets is None:
            return None
        return self.targets[batch.to(self.targets.device)].to(self.device).float()

    def labels_of(self, batch: Tensor) -> Tensor | None:
        """(B,) in phase 2 of a method that uses them."""
        wanted = self.phase == 2 and self.trainee.method.uses_labels
        return self.labels[batch] if wanted and self.labels is not None else None

    def update(self) -> None:
        """Apply the gradients unless one is not finite, without asking the device; then move the target network."""
        lr = lr_at(self.step, self.lengths.total_steps, self.lr, self.schedule, self.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        bad = non_finite(self.trainable)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # fused optimizers skip the update where it is 1
        self.first_bad = torch.where(self.first_bad == 0, bad * self.step, self.first_bad)
        self.optimizer.step()
        self.trainee.method.after_step(self.step / self.lengths.total_steps)

    def maybe_switch(self) -> None:
        """Leave phase 1 for good when the switch says so; it is asked every few steps on a GPU, at each on the CPU."""
        if self.phase == 2 or self.switch is None:
            return
        self.switch.check()
        if (self.step - 1) % self.read_every == 0 and self.switch.leaves():
            self.switch_step = self.step
            self.enter(2)

    def check_finite(self, now: bool = False) -> None:
        """Stop at a non-finite gradient; its update was held back, so the weights are still good."""
        if self.step % self.read_every and self.step != self.lengths.total_steps and not now:
            return
        if bad := int(self.first_bad.item()):
            epoch, place = divmod(bad - 1, self.lengths.steps_per_epoch)
            samples = next(self.batches(epoch, place)).tolist()
            phase = 1 if self.switch is not None and bad < (self.switch_step or bad + 1) else 2
            shown = ", ".join(map(str, samples[:8]))
            raise NonFiniteError(
                f"NaN or Inf in the gradients of step {bad} (phase {phase}, epoch {epoch + 1}, samples {shown}, "
                f"...). The update was not applied. A smaller optimizer.lr than {self.lr:g} is the usual way out",
                {"step": bad, "phase": phase, "epoch": epoch + 1, "samples": samples},
            )

    # ------------------------------------------------------------------------------------- what it says

    def is_due(self, epoch: int, every: int) -> bool:
        """Whether an epoch is one of each `every`, or the last; never when `every` is 0."""
        return bool(every) and ((epoch + 1) % every == 0 or epoch + 1 == self.config.epochs)

    def record(self, epoch: int, meter: Meter) -> Facts:
        """A line of metrics.jsonl."""
        if self.trace:
            self.trace.flush()
        rho = self.switch.state[2].item() if self.switch and self.phase == 1 else None
        facts: Facts = {"step": self.step, "epoch": epoch + 1, "phase": self.phase, **meter.read(), "rho": rho}
        facts["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.is_due(epoch, self.config.runtime.eval_every_epochs):
            facts |= self.watch()
        return facts

    def watch(self) -> Facts:
        """Effective rank of the representation, and kNN on train samples held out of its bank."""
        stride = max(1, len(self.images) // WATCHED)
        images = self.images[torch.arange(len(self.images))[::stride][:WATCHED]]
        features = representations(self.trainee.method.backbone, images, self.data, self.config.runtime.block_size)
        facts: Facts = {
            "effective_rank": round(effective_rank(features), 3),
            "deviation": round(deviation(features), 4),
        }
        self.check_collapse(**facts)
        if self.labels is not None:
            labels = self.labels[::stride][:WATCHED].cpu()
            query = torch.arange(len(labels)) % 10 == 0
            facts["knn"] = knn_top1(features[~query], labels[~query], features[query], labels[query], WATCHED_K, 0.1)
        return facts

    # --------------------------------------------------------------------------------- leaving and going on

    def begin(self, checkpoints: Checkpoints, saved: Saved | None) -> None:
        """Start the clocks, where an earlier process stopped them if there was one.

        Raises:
            RelaError: what was saved does not fit this run.
        """
        self.checkpoints, self.started = checkpoints, time.perf_counter()
        self.meter.restart()
        if saved and saved.step > self.lengths.total_steps:
            raise RelaError(f"the checkpoint is of step {saved.step}, and this run has {self.lengths.total_steps}")
        if saved:
            self.load_state(saved.state)
        checkpoints.restart(self.step, self.phase)

    def at_boundary(self, signals: Sequence[Stopped]) -> None:
        """Between two steps: save when it is time, and leave, saved, when a signal has come."""
        if self.checkpoints is None:
            return
        total, is_last = self.lengths.total_steps, self.step == self.lengths.total_steps
        leaves = self.leaves(signals)
        if self.checkpoints.is_due(self.step, self.phase, is_last or leaves):
            self.check_finite(now=True)
            if ranks.is_first():
                self.checkpoints.save(self.step, self.phase, self.state())
        if leaves:
            words = str(signals[0]).partition(";")[0] if signals else "stopped with the other ranks"
            code = signals[0].exit_code if signals else 143
            raise Stopped(f"{words}; the same command goes on from step {self.step} of {total}", code - 128)

    def leaves(self, signals: Sequence[Stopped]) -> bool:
        """Whether a signal has come; of several ranks all say yes at the same step, the first that all know of it."""
        if ranks.world() == 1:
            return bool(signals)
        is_read = self.step % self.read_every == 0 or self.step == self.lengths.total_steps
        return is_read and self.leaving.item() > 0

    def state(self) -> Facts:
        """All that the steps to come depend on, and the records; the rest is a function of config, data and step."""
        if self.trace:
            self.trace.flush()
        return {
            "trainee": self.trainee.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],  # rates and the like are the config's
            "switch": None if self.switch is None else self.switch.state,
            **{name: getattr(self, name) for name in COUNTERS},
            "traced": self.trace.written if self.trace else 0,
            "meter": self.meter.state(),
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "peak_memory": self.peak_memory(),
        }

    def load_state(self, state: Facts) -> None:
        """Go on after the step that `state` was taken at.

        Raises:
            RelaError: it is of another learner, method or optimizer.
        """
        try:
            load_state(self.trainee, state["trainee"])
            self.load_optimizer(state["optimizer"])
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise RelaError(
                f"the checkpoint does not fit learner={self.config.learner.name}, method={self.config.method.name}, "
                f"optimizer={self.config.optimizer.name}: {str(error).strip().splitlines()[-1].strip()}. "
                f"resume=never starts again"
            ) from error
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.trainee.method.progress = self.step / self.lengths.total_steps
        self.enter(self.phase)
        if self.switch is not None and state["switch"] is not None:
            self.switch.state = state["switch"].to(self.device)
        if self.trace:
            self.trace.written = state["traced"]
        self.meter.load_state(state["meter"], self.device)
        self.seconds, self.peak_before = state["seconds"], state.get("peak_memory", 0)
        if not ranks.is_first():
            torch.manual_seed(own_seed(self.config, self.step))
            return
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_gpu"] is not None:
            torch.cuda.set_rng_state(state["random_gpu"], self.device)

    def peak_memory(self) -> int:
        """Bytes, the most that any process of the run has taken."""
        return max(self.peak_before, peak_memory(self.device))

    def load_optimizer(self, memory: Facts) -> None:
        """The optimizer's memory, each tensor laid out as its parameter: fused updates walk both in memory's order."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, values in memory.items():
            parameter = parameters[int(number)]
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {int(k): v for k, v in memory.items()}, "param_groups": groups})

    def check_collapse(self, effective_rank: float, deviation: float) -> None:
        """Say once, while it happens, that the representation no longer tells images apart.

        Raises:
            CollapseError: on_collapse=stop.
        """
        if self.step < SETTLED:
            return
        one_direction = (
            effective_rank < COLLAPSED_RANK and not self.trainee.method.uses_labels
        )  # two classes need no more
        collapsed, before = one_direction or deviation < COLLAPSED_DEVIATION, self.collapsed
        self.collapsed = bool(before or collapsed)
        if not collapsed or before:
            return
        words = (
            f"the representation has collapsed at step {self.step}: effective rank {effective_rank:.3g} (below "
            f"{COLLAPSED_RANK:g} is collapse), deviation a dimension {deviation:.3g} (below {COLLAPSED_DEVIATION:g} is)"
        )
        if self.config.on_collapse == "stop":
            raise CollapseError(f"{words}. A smaller optimizer.lr than {self.lr:g} is one way out")
        if ranks.is_first():
            print(f"rela: {words}. It goes on; on_collapse=stop would end it", file=sys.stderr, flush=True)

    def step_flops(self) -> dict[int, int]:
        """FLOPs of one step of each phase that may come, forward and backward."""
        batch, images = next(load(self.images, self.shares(0), self.device))
        costs = {}
        with self.as_it_was():
            for phase in {self.phase, 2}:
                self.phase = phase
                views = [augment(images, batch, 0) for augment in self.augments[self.phase]]
                work = lambda: self.try_step(views, batch)  # noqa: B023, E731
                costs[phase] = count_flops(work) * ranks.world()
        return costs

    def choose_threads(self, recorded: int | None) -> None:
        """Those that training was begun with, else all, or one where that is clearly faster in a trial."""
        batch, images = next(load(self.images, self.shares(0), self.device))
        batch, images = batch[:TRIAL], images[:TRIAL]
        with self.as_it_was():
            augments = self.augments[self.phase]
            work = lambda: self.try_step([augment(images, batch, 0) for augment in augments], batch)  # noqa: E731
            self.threads = threads.choose(self.config.runtime, self.device, recorded, work)

    def try_step(self, views: Sequence[Tensor], batch: Tensor) -> None:
        """Forward and backward, without an update."""
        self.trainee(views, self.targets_of(batch), self.labels_of(batch)).backward()

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Trials leave weights, buffers, gradients and the phase as they were; torch's generator is set later."""
        phase, state = self.phase, {k: v.clone() for k, v in self.trainee.state_dict().items()}
        yield
        self.phase = phase
        load_state(self.trainee, state)
        self.optimizer.zero_grad(set_to_none=True)


def own_seed(config: Config, step: int) -> int:
    """For dropout and the like, which ranks draw apart; what came before does not matter."""
    return key(config.seed, "train", *([] if ranks.is_first() else [ranks.rank(), step]))
