"""Real processes and real faults, for all families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rela_cli.pipeline import pipeline
from rela_cli.store import integrity
from tests import warm
from tests.conftest import ROOT
from tests.factories import config

FAKE = ("dataset=fake", "dataset.n=96", "dataset.n_test=32", "dataset.size=8", "learner.width=4", "runtime.threads=1")
SHORT = ("epochs=1", "batch_size=16", "budget=0.5", "probe.protocols=[knn]", "probe.knn_k=10", "probe.baselines=false")
RANDOM = ("prior=random", "prior.width=4")
WORDS = (*FAKE, *SHORT, *RANDOM, "runtime.eval_every_epochs=0")


def go(outputs: Path, *words: str, until: str = "probe") -> pipeline.Outcome:
    """The same as a process would do, but here, with nothing remembered of earlier calls."""
    integrity._hashes.clear()
    return pipeline.run(config(*words, f"paths.outputs={outputs}"), until=until)


def start(folder: Path, *words: str, env: dict[str, str] | None = None, before: Any = None) -> warm.Process:
    """`rela ...` as a process of its own in `folder`; it can be killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return warm.start(folder, *words, env=environment, before=before)


def python(code: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A Python process with our package."""
    words = [sys.executable, "-c", "import sys, time, os\nfrom pathlib import Path\n" + code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(ready: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, found
    return found[0]


def flip(path: Path, place: int = -1) -> None:
    """One bit of one byte; size and time stay."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def small_disk(place: Path, size: str, *options: str) -> Iterator[Path]:
    """A tmpfs of `size` at `place`; the test is skipped by name where we may not mount."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no leave to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(("remount", *options)), str(place)], check=True, capture_output=True)
