"""Small but real runs: their words, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rela_cli.config.schema import Config
from rela_cli.pipeline import pipeline
from tests.factories import config

FAKE = ("dataset=fake", "dataset.n=128", "dataset.n_test=40", "dataset.size=8", "learner.width=4", "runtime.threads=1")
SHORT = ("epochs=1", "batch_size=16", "budget=0.5", "probe.protocols=[knn]", "probe.knn_k=10")
RANDOM = ("prior=random", "prior.width=4")
WORDS = (*FAKE, *SHORT, *RANDOM)
PLAIN = (*FAKE, *SHORT, "prior=none")
Json = dict[str, Any]


def setup(outputs: Path, *words: str) -> Config:
    return config(*words, f"paths.outputs={outputs}")


def go(outputs: Path, *words: str, until: str = "probe") -> pipeline.Outcome:
    return pipeline.run(setup(outputs, *words), until=until)


def result(outcome: pipeline.Outcome) -> Json:
    assert outcome.folder is not None
    return read(outcome.folder / "result.json")


def read(path: Path) -> Json:
    return dict(json.loads(path.read_text()))


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def entries(outputs: Path, kind: str) -> list[str]:
    folder = outputs / "cache" / kind
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def run_folder(outputs: Path) -> Path | None:
    return next((outputs / "outputs" / "runs").glob("fake-*"), None)
