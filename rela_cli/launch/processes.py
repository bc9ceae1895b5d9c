"""Processes of `rela` that this one starts and watches: the ranks of a run, and the runs of a table."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

Process = subprocess.Popen[bytes]


def start(words: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> Process:
    """`rela WORDS`, in a session of its own: a Ctrl-C is ours to hand on, once. What it prints goes into `log`."""
    command, env = [sys.executable, "-m", "rela_cli", *words], dict(environment)
    if log is None:
        return subprocess.Popen(command, env=env, start_new_session=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(command, env=env, start_new_session=True, stdout=file, stderr=subprocess.STDOUT)


def stop_all(processes: Sequence[Process]) -> None:
    """Let those that are there save and leave."""
    for process in processes:
        process.terminate()


def end_all(processes: Sequence[Process], grace: float) -> None:
    """Leave nobody behind: told first, and ended after `grace` seconds."""
    if grace:
        stop_all(processes)
    until = time.monotonic() + grace
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()
