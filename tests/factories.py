"""Small things that many tests need: a config, images, statistics of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.config.compose import compose
from rela_cli.config.lengths import lengths
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import ImageStats, Split, channel_stats
from rela_cli.training.goals import Goals
from rela_cli.training.trainer import Trainer

NEEDS = {  # what a choice cannot do without
    "prior=checkpoint": ["prior.weights=some.pth"],
    "prior=exported": ["prior.weights=some.pt2"],
    "prior=onnx": ["prior.weights=some.onnx"],
    "prior=open_clip": ["prior.model=RN50", "prior.tag=openai"],
    "prior=timm": ["prior.model=resnet10t"],
    "prior=torchvision": ["prior.model=mobilenet_v3_small"],
    "prior=efficient": ["dataset=efficient"],
    "transport=efficient": ["prior=efficient", "dataset=efficient"],
    "prior=ensemble": ["prior.members=[patches,random]"],
    "prior=rela_run": ["prior.run=some/run"],
}
SMALL = ("dataset=fake", "learner.width=4", "runtime.threads=1", "runtime.device=cpu", "runtime.eval_every_epochs=0")


def config(*overrides: str) -> Config:
    """`rela train dataset=fake ...` at a width that costs nothing; where it writes to is nothing to compose for."""
    outputs = [word for word in overrides if word.startswith("paths.outputs=")]
    made = composed(*(word for word in overrides if word not in outputs))
    return replace(made, paths=replace(made.paths, outputs=outputs[-1].partition("=")[2])) if outputs else made


@cache
def composed(*overrides: str) -> Config:
    return compose([*SMALL, *overrides])


def pixels(n: int, size: int, seed: int = 0) -> Tensor:
    """(n, 3, size, size) uint8: smooth colour ramps under noise, so that neither hue nor blur is trivial."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 3, 3, 3, generator=random)
    smooth = nn.functional.interpolate(corners, (size, size), mode="bilinear", align_corners=True)
    noise = 0.15 * torch.randn(n, 3, size, size, generator=random)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def stats_of(images: Tensor) -> ImageStats:
    """Channel statistics of (N, 3, S, S) uint8."""
    found = channel_stats(images.permute(0, 2, 3, 1).numpy())
    return ImageStats(torch.tensor(found["mean"]), torch.tensor(found["std"]), images.shape[-1])


def trainer(*overrides: str, n: int = 64, size: int = 8, target_dim: int | None = 8) -> Trainer:
    """A trainer on `n` images, with whitened noise as targets unless `target_dim` is None."""
    made = config("batch_size=16", "epochs=2", *overrides)
    images = pixels(n, size)
    random = torch.Generator().manual_seed(1)
    goals = None if target_dim is None else Goals(torch.randn(n, target_dim, generator=random))
    return Trainer(made, lengths(made, n), Split(images, torch.arange(n) % 4), goals, stats_of(images))


@dataclass
class Notes:
    """Stands for Metrics and keeps what it is told, and the loss of each step."""

    records: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def fit(loop: Trainer, after_step: Callable[[], object] = lambda: None, steps: int | None = None) -> Notes:
    """Train as the stage does, looking in after every step; `steps` cuts it short."""
    update, keep, notes, taken = loop.update, loop.keep, Notes(), 0

    def watched() -> None:
        nonlocal taken
        update()
        taken += 1
        after_step()
        if taken == steps:
            raise Enough

    def noted(loss: Tensor) -> None:
        notes.losses.append(loss)
        keep(loss)

    loop.update, loop.keep = watched, noted  # type: ignore[method-assign]
    with suppress(Enough):
        loop.fit(notes)  # type: ignore[arg-type]
    loop.update, loop.keep = update, keep  # type: ignore[method-assign]
    return notes


class Enough(Exception):
    """Leaves the loop."""
