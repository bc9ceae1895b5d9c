"""What all tests share. Threads are set before anything imports torch: tests run side by side."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm
from tests.no_torch import NO_TORCH as NO_TORCH

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
for _variable in ("RELA_DEBUG", "HYDRA_FULL_ERROR", "NO_COLOR", "COLUMNS"):
    os.environ.pop(_variable, None)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup; processes of the tests would ignore it as well
    signal.signal(signal.SIGHUP, lambda *_: None)

ROOT = Path(__file__).parent.parent
Rela = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_finish() -> None:
    """Python's garbage collection looks through all that is there, again and again: not through what stays."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The same with what a file of tests has left behind: modules, compiled code, caches."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture
def rela(tmp_path: Path) -> Rela:
    """`rela ...` as a process of its own, in an empty folder. `stub` is Python that runs before anything else.

    It is forked from a server of `warm`: from the one without torch where there is a stub, unless `kind` says which;
    "fresh" starts a new Python.
    """

    def call(
        *words: str, stub: str = "", env: dict[str, str] | None = None, kind: str = ""
    ) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT)]
        if stub:
            folder = tmp_path / ".stub"
            folder.mkdir(exist_ok=True)
            (folder / "sitecustomize.py").write_text(stub)
            paths.insert(0, str(folder))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        kind = kind if warm.suits(env or {}) else "fresh"
        if kind != "fresh":
            return warm.run(tmp_path, *words, env=environment, stub=stub, kind=kind or ("light" if stub else "full"))
        command = [sys.executable, "-m", "rela_cli", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return call
