"""What these tests share: training as the stage does it, what came of it, and real processes that can be killed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from rela_cli.config.schema import CONF_DIR
from rela_cli.training.checkpoint import Checkpoints
from rela_cli.training.logs import Metrics
from rela_cli.training.trainer import Trainer
from tests import warm
from tests.factories import trainer

TIMED = ("images_per_second", "data_wait")  # of a record: no two runs have the same
ACCOUNT = ("seconds", "peak_memory")  # of a run: what its processes took, which no two do alike
METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))
SENSITIVE = {  # settings under which a method's own memory of the run's progress matters
    "dino": ["method.warmup_teacher_temperature=0.02", "method.ema_schedule=cosine"],
    "swav": ["method.frozen_prototypes=0.7"],
    "byol": ["method.ema_schedule=cosine"],
}
STEPS = 9  # of `small`: three epochs of three; the fixed switch leaves after four
SWITCH = ("switch=fixed", "switch.at=0.5")


def words(method: str) -> list[str]:
    """A method with heads that cost nothing."""
    keys = yaml.safe_load((CONF_DIR / "method" / f"{method}.yaml").read_text())
    heads = [key for key in ("hidden_dim", "predictor_dim", "projection_dim", "prototypes") if key in keys]
    return [f"method={method}", *(f"method.{key}=8" for key in heads), *SENSITIVE.get(method, [])]


def small(*overrides: str, target_dim: int | None = 8) -> Trainer:
    """A trainer of nine steps with a dropout, so that torch's own generator counts too."""
    loop = trainer("epochs=3", "budget=0.75", *overrides, target_dim=target_dim)
    loop.trainee.method.backbone.register_forward_hook(
        lambda module, _, output: torch.nn.functional.dropout(output, 0.2, module.training)
    )
    return loop


class Killed(Exception):
    """Ends training in the middle of a step."""


def train(folder: Path, loop: Trainer, every: float = 1e9, stop: int | None = None, change: Any = None) -> Trainer:
    """What is left to do in a run's folder, as the pipeline and the stage do it; `stop` ends it within a step.

    `change` may have its way with what was saved before it is used.
    """
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder, every)
    saved = checkpoints.latest()
    checkpoints.rewind(saved)
    if saved and change:
        change(saved.state)
    torch.manual_seed(5)
    loop.begin(checkpoints, saved)
    update = loop.update

    def watched() -> None:
        if loop.position.step == stop:
            raise Killed
        update()

    loop.update = watched  # type: ignore[method-assign]
    with Metrics(folder / "metrics.jsonl", lambda _: None) as metrics:
        loop.fit(metrics)
    return loop


def keep_until(folder: Path, step: int) -> None:
    """Remove the checkpoints after a step; the logs stay as long as they are."""
    for path in Checkpoints(folder, 0).found():
        if int(path.name.split("-")[1]) > step:
            path.unlink()


def ending(loop: Trainer, folder: Path) -> dict[str, Any]:
    """All that two runs must have in common: tensors, counters, and the logs but for their timings."""
    optimizer = loop.optimizer.state_dict()["state"]
    return {
        **{f"trainee/{key}": value.clone() for key, value in loop.trainee.state_dict().items()},
        **{f"optimizer/{n}/{key}": value for n, values in optimizer.items() for key, value in values.items()},
        "switch": None if loop.switch is None else loop.switch.state,
        "position": asdict(loop.position),
        "seconds": loop.checkpointing.seconds,  # of the processes before this one
        "peak_memory": loop.checkpointing.peak_before,  # the same
        "metrics": records(folder / "metrics.jsonl"),
        "trace": (folder / "switch.jsonl").read_text() if loop.trace else "",
    }


def records(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its timings."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMED} for record in found]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def untimed(end: dict[str, Any]) -> dict[str, Any]:
    """Without what is known to be another in a run that was interrupted."""
    return {key: value for key, value in end.items() if key not in ACCOUNT}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys under which two endings are not the same, bit for bit."""
    return [key for key in {**one, **other} if not same(one.get(key), other.get(key))]


# ------------------------------------------------------------------------------------------------------ real processes

FAKE = ("dataset=fake", "dataset.n=64", "dataset.n_test=20", "dataset.size=8", "learner.width=4", "runtime.threads=1")
TINY = (*FAKE, "prior=random", "prior.width=4", "batch_size=8", "budget=0.5", "epochs=6", "probe.protocols=[knn]")
RUN = (*TINY, "runtime.eval_every_epochs=2", "runtime=cpu", *SWITCH, "method=byol", "probe.knn_k=5")  # 24 steps

Process = warm.Process


def spawn(folder: Path, *arguments: str, env: dict[str, str] | None = None, before: Any = None) -> Process:
    """`rela ...` in a process of its own, forked from one that has imported torch already; its words go to out, err."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "out", folder / "err"
    return warm.start(folder, *arguments, env={**os.environ, **(env or {})}, files=files, before=before)


def finish(process: Process) -> int:
    return process.wait(240)


def call(folder: Path, *arguments: str, **more: Any) -> int:
    """`rela ...` to its end; the exit status."""
    return finish(spawn(folder, *arguments, **more))


def run_folder(folder: Path) -> Path:
    return next(path for path in (folder / "outputs" / "runs").iterdir() if not path.is_symlink())


def left(folder: Path) -> dict[str, Any]:
    """What a finished `rela train` must have left, whatever happened to it: weights, logs, numbers."""
    run = run_folder(folder)
    result = json.loads((run / "result.json").read_text())
    names = ("backbone", "backbone_target")
    weights = {f"{name}/{k}": v for name in names for k, v in load_file(run / f"{name}.safetensors").items()}
    logs = {"metrics": records(run / "metrics.jsonl"), "trace": (run / "switch.jsonl").read_text()}
    numbers = {key: value["top1"] for key, value in result["probe"].items()}
    facts = {key: result[key] for key in ("steps", "switch_step", "flops", "fingerprint")}
    return {**weights, **logs, "numbers": numbers, "facts": facts}


def temporaries(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if ".tmp" in path.name]
