"""The groups of the schema that say where and how a run runs, and what it writes: hardly any of it is its identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rela_cli.config.ranges import Count, CountOrOneOf, FolderName, NonNegative, OneOf, Range

GLOBAL, NODE, LOCAL = "global", "node", "local"  # what runtime.norm may say instead of a number


@dataclass(frozen=True)
class Runtime:
    """Where and how it runs.

    Of a run's identity: `read_every_steps`, `extract_precision` where it is not fp32, `gradient_hook` where it is not
    none, and the number of groups of `norm` where that is not 1.
    """

    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))]
    threads: Count | None
    block_size: Count
    log_every_epochs: Count
    eval_every_epochs: Annotated[int, Range(0)]
    read_every_steps: Count | None
    devices: Count
    norm: Annotated[object, CountOrOneOf((GLOBAL, NODE, LOCAL))]
    gradient_hook: Annotated[str, OneOf(("none", "bf16"))]
    hang_minutes: Count
    precision: Annotated[str, OneOf(("auto", "fp32", "tf32", "bf16"))]
    extract_precision: Annotated[str, OneOf(("fp32", "tf32", "fp16", "bf16"))]
    compile: Annotated[str, OneOf(("off", "default", "reduce-overhead"))]
    step: Annotated[str, OneOf(("auto", "eager", "graph"))]
    deterministic: bool
    cells_at_once: Count | None
    cells_per_gpu: Count | None
    dry_run: bool


@dataclass(frozen=True)
class Trackers:
    """Which trackers get the metrics; several yamls of the group may each turn one on."""

    wandb: bool = False
    tensorboard: bool = False
    mlflow: bool = False
    trackio: bool = False


@dataclass(frozen=True)
class Logger:
    """Where metrics go besides metrics.jsonl."""

    use: Trackers
    project: str
    entity: str | None
    mode: Annotated[str, OneOf(("online", "offline"))]
    uri: str | None

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers that are used."""
        return [name for name, used in vars(self.use).items() if used]


@dataclass(frozen=True)
class Paths:
    """Folders; relative ones start at the working directory."""

    outputs: Annotated[str, FolderName()]
    run: str | None


@dataclass(frozen=True)
class CheckpointSettings:
    """How often the state of training is written down, and whether the last one outlives the training."""

    every_seconds: NonNegative
    keep: bool
