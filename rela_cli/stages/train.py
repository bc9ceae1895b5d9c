"""Stage 3: train the learner on a dynamic subset, first towards its targets, then with the method itself.

Shapes: B batch, D feature_dim, k target_dim, S pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rela_cli.artifacts import Facts, write_atomic
from rela_cli.config import Config, Lengths
from rela_cli.data.cache import ImageStats, Split
from rela_cli.data.subset import epoch_indices
from rela_cli.data.views import Augment
from rela_cli.errors import NonFiniteError
from rela_cli.learners.build import build_backbone
from rela_cli.matching import Matching
from rela_cli.methods.base import Method
from rela_cli.optim import lr_at, non_finite
from rela_cli.parts import build
from rela_cli.representation import effective_rank, knn_top1, representations
from rela_cli.runtime import Metrics, Progress, count_flops, peak_memory, pick_device, wait
from rela_cli.streams import seeded
from rela_cli.switch import Switch

VERSION = 1
WATCHED = 2000  # train images that kNN and effective rank look at while it runs


class Trainee(nn.Module):
    """Everything that is optimized, in one module: the method around its backbone, and the matching of phase 1."""

    def __init__(self, config: Config, target_dim: int | None) -> None:
        super().__init__()
        backbone = build_backbone(config)
        feature_dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        with seeded(config.seed, "init", "heads"):
            self.method: Method = build(config.method, backbone=backbone, feature_dim=feature_dim)
            self.matching = Matching(feature_dim, target_dim, config.matching.transfer) if target_dim else None

    def forward(self, views: list[Tensor], targets: Tensor | None) -> Tensor:
        """The matching loss where there are targets (phase 1), else the method's own (phase 2)."""
        if targets is None or self.matching is None:
            return self.method(views)  # type: ignore[no-any-return]
        return self.matching([self.method.backbone(view) for view in views], targets)  # type: ignore[no-any-return]


@dataclass
class Meter:
    """Means since the last record; losses stay on the device until they are read."""

    loss: Tensor | None = None
    steps: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, waited: float) -> None:
        self.loss = loss if self.loss is None else self.loss + loss
        self.steps, self.waited = self.steps + 1, self.waited + waited

    def read(self, batch_size: int) -> Facts:
        assert self.loss is not None
        loss, now = self.loss.item() / self.steps, time.perf_counter()
        seconds = now - self.since
        rate, share = self.steps * batch_size / seconds, self.waited / seconds
        self.loss, self.steps, self.waited, self.since = None, 0, 0.0, now
        return {"loss": loss, "images_per_second": round(rate, 1), "data_wait": round(share, 4)}


class Trainer:
    """One training run: the parts, the loop, and what it has to say about itself."""

    def __init__(self, config: Config, lengths: Lengths, train: Split, targets: Tensor | None, data: ImageStats) -> None:
        self.config, self.lengths, self.data = config, lengths, data
        self.device = pick_device(config.runtime)
        self.images, self.labels = train.images.to(self.device), train.labels
        self.targets = None if targets is None else targets.to(self.device)
        self.trainee = Trainee(config, None if targets is None else targets.shape[1]).to(self.device)
        self.trainable = [p for p in self.trainee.parameters() if p.requires_grad]
        settings = dict(config.optimizer.options)
        self.lr, self.schedule = settings["lr"], settings.pop("schedule")
        self.warmup_steps = round(settings.pop("warmup_epochs") * lengths.steps_per_epoch)
        self.optimizer: torch.optim.Optimizer = build(
            replace(config.optimizer, options=settings), parameters=self.trainable
        )
        self.switch: Switch | None = None
        if targets is not None:
            self.switch = build(config.switch, total_steps=lengths.total_steps, device=self.device)
        self.read_every = config.runtime.read_every_steps or (1 if self.device.type == "cpu" else 10)
        self.phase, self.switch_step, self.step = (2 if targets is None else 1), None, 0
        self.bad = torch.zeros((), device=self.device)
        self.augments = {1: self.augmenters([config.matching.view] * 2), 2: self.augmenters(self.trainee.method.views)}

    def augmenters(self, views: list) -> list[Augment]:  # type: ignore[type-arg]
        mean, std = self.data.mean.to(self.device), self.data.std.to(self.device)
        flip = self.config.dataset.options.get("flip", True)
        return [Augment(v, self.data.size, mean, std, self.config.seed, i, flip) for i, v in enumerate(views)]

    def fit(self, metrics: Metrics) -> None:
        """All epochs: draw the subset, take the steps, write a record."""
        self.trainee.train()
        meter = Meter()
        with Progress("train", self.lengths.total_steps) as progress:
            for epoch in range(self.config.epochs):
                for batch in self.batches(epoch):
                    loss, waited = self.take_step(batch, epoch)
                    meter.add(loss, waited)
                    progress.show(self.step, self.note)
                self.record(epoch, meter, metrics)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Sample indices (B,) of each step; the last partial batch is dropped."""
        order = epoch_indices(self.config.seed, epoch, self.lengths.train_samples, self.lengths.subset_size)
        size = self.config.batch_size
        for start in range(0, self.lengths.steps_per_epoch * size, size):
            yield order[start : start + size].to(self.device)

    def take_step(self, batch: Tensor, epoch: int) -> tuple[Tensor, float]:
        """One update. Returns the loss, on the device, and the seconds its views took."""
        self.step += 1
        self.maybe_switch()
        started = time.perf_counter()
        views = [augment(self.images[batch], batch, epoch) for augment in self.augments[self.phase]]
        waited = time.perf_counter() - started
        loss = self.trainee(views, self.targets[batch].float() if self.phase == 1 else None)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.update()
        if self.phase == 1:
            self.switch.observe(loss.detach())
        self.check_finite(batch, epoch)
        return loss.detach(), waited

    def update(self) -> None:
        """Apply the gradients unless one is not finite, without asking the device; then move the target network."""
        lr = lr_at(self.step, self.lengths.total_steps, self.lr, self.schedule, self.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.found_inf = non_finite(self.trainable)  # type: ignore[attr-defined]
        self.bad = torch.maximum(self.bad, self.optimizer.found_inf * self.step)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.trainee.method.after_step(self.step / self.lengths.total_steps)

    def maybe_switch(self) -> None:
        """Leave phase 1 for good when the switch says so; read every few steps on a GPU, at each on the CPU."""
        if self.phase == 2 or self.switch is None:
            return
        self.switch.check()
        if (self.step - 1) % self.read_every == 0 and self.switch.leaves():
            self.phase, self.switch_step = 2, self.step

    def check_finite(self, batch: Tensor, epoch: int) -> None:
        """Stop at a non-finite gradient; the update was held back, so the weights are still good."""
        if self.step % self.read_every and self.step != self.lengths.total_steps:
            return
        if step := int(self.bad.item()):
            samples = ", ".join(map(str, batch[:8].tolist()))
            raise NonFiniteError(
                f"NaN or Inf in the gradients of step {step} (phase {self.phase}, epoch {epoch}, samples {samples}, ...). "
                f"The update was not applied. A smaller optimizer.lr than {self.lr:g} is the usual way out"
            )

    @property
    def note(self) -> str:
        """A few words for the progress line."""
        return f"phase {self.phase}"

    def record(self, epoch: int, meter: Meter, metrics: Metrics) -> None:
        """A line of metrics.jsonl at the end of an epoch that is due."""
        every, last = self.config.runtime.log_every_epochs, epoch + 1 == self.config.epochs
        if (epoch + 1) % every and not last:
            return
        facts: Facts = {"step": self.step, "epoch": epoch + 1, "phase": self.phase, **meter.read(self.config.batch_size)}
        facts["lr"] = self.optimizer.param_groups[0]["lr"]
        facts["rho"] = self.switch.state[2].item() if self.switch and self.phase == 1 else None
        evaluate = self.config.runtime.eval_every_epochs
        if evaluate and ((epoch + 1) % evaluate == 0 or last):
            facts |= self.watch()
        metrics.write(facts)
        meter.since = time.perf_counter()

    def watch(self) -> Facts:
        """kNN on held-out train samples, and how many dimensions the representation uses."""
        images = self.images[:: max(1, len(self.images) // WATCHED)][:WATCHED]
        features = representations(self.trainee.method.backbone, images, self.data, self.config.runtime.block_size)
        facts: Facts = {"effective_rank": round(effective_rank(features), 3)}
        if self.labels is not None:
            labels = self.labels[:: max(1, len(self.labels) // WATCHED)][:WATCHED]
            held_out = torch.arange(len(labels)) % 10 == 0
            facts["knn"] = knn_top1(features[~held_out], labels[~held_out], features[held_out], labels[held_out], 20, 0.1)
        return facts

    def step_flops(self) -> dict[int, int]:
        """FLOPs of one step of each phase, forward and backward, counted on a throw-away copy of the first batch."""
        batch = next(self.batches(0))
        costs = {}
        for phase in {self.phase, 2}:
            views = [augment(self.images[batch], batch, 0) for augment in self.augments[phase]]
            targets = self.targets[batch].float() if phase == 1 else None
            state = {k: v.clone() for k, v in self.trainee.state_dict().items()}
            costs[phase] = count_flops(lambda: self.trainee(views, targets).backward())  # noqa: B023
            self.trainee.load_state_dict(state)
            self.optimizer.zero_grad(set_to_none=True)
        return costs


def train(
    config: Config, lengths: Lengths, images: Split, targets: Tensor | None, data: ImageStats, folder: Path, metrics: Metrics
) -> Facts:
    """Train, write backbone.safetensors (and backbone_target.safetensors where the method has one); facts.

    Raises:
        NonFiniteError: a gradient was NaN or Inf; the weights before it are untouched.
    """
    trainer = Trainer(config, lengths, images, targets, data)
    costs = trainer.step_flops()
    wait(trainer.device)
    started = time.perf_counter()
    trainer.fit(metrics)
    wait(trainer.device)
    seconds = time.perf_counter() - started
    for name, network in trainer.trainee.method.networks().items():
        file = folder / ("backbone.safetensors" if name == "online" else f"backbone_{name}.safetensors")
        state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        write_atomic(file, lambda path, state=state: save_file(state, path))  # type: ignore[misc]
    return summary(trainer, costs, seconds)


def summary(trainer: Trainer, costs: dict[int, int], seconds: float) -> Facts:
    """What result.json says about training."""
    total = trainer.lengths.total_steps
    phase1 = 0 if trainer.switch is None else (trainer.switch_step or total + 1) - 1
    return {
        "steps": total,
        "samples_seen": trainer.lengths.samples_seen,
        "switch_step": trainer.switch_step,
        "phase1_steps": phase1,
        "feature_dim": int(trainer.trainee.method.backbone.feature_dim),  # type: ignore[arg-type]
        "target_dim": None if trainer.targets is None else trainer.targets.shape[1],
        "seconds": seconds,
        "flops": phase1 * costs.get(1, 0) + (total - phase1) * costs[2],
        "peak_memory_bytes": peak_memory(trainer.device),
        "device": str(trainer.device),
    }
