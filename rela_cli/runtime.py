"""The machine under a run: device, threads, blocks of work, what it costs, and the lines people read."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rela_cli import memory, ranks
from rela_cli.config import Runtime
from rela_cli.errors import ConfigError
from rela_cli.precision import set_backends

LINE_SECONDS = 30  # how often a plain line is printed where there is no terminal


def pick_device(runtime: Runtime) -> torch.device:
    """The device to use; sets the number of CPU threads as well.

    Raises:
        ConfigError: cuda was asked for and is not there.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but torch sees no GPU here; say runtime.device=auto")
    set_backends(runtime)
    return ranks.device("cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu")


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    import torchvision

    from rela_cli import __version__

    return {
        "rela": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def count_flops(work: Callable[[], Any]) -> int:
    """Multiplications and additions of one call (matrix products and convolutions), by running it once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak since the start of the run, or the most that the process itself has held on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else memory.peak()


def wait(device: torch.device) -> None:
    """Let the device finish, so that a clock read on the host means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Metrics:
    """metrics.jsonl: one line a record, flushed at once, added to what is there."""

    def __init__(self, path: Path, forward: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.forward = path, forward

    def __enter__(self) -> Metrics:
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and hand it on to the logger."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        self.forward(record)


class Progress:
    """Steps done, on a terminal as a bar with ETA, elsewhere as one plain line every 30 seconds."""

    def __init__(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.title, self.total, self.said = title, total, time.monotonic()
        self.before: tuple[int, float] | None = None  # what was done when it was first shown, and when
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.quiet = not ranks.is_first()
        self.bar = Bar(*columns, console=console, transient=True) if console.is_terminal and not self.quiet else None

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, done: int, note: str = "") -> None:
        """`done` of the total, with a few words."""
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        self.before = self.before or (done, now)
        if now - self.said >= LINE_SECONDS and not self.quiet:
            self.said = now
            print(f"{self.title}: {done} of {self.total}{self.eta(done, now)}  {note}", file=sys.stderr, flush=True)

    def eta(self, done: int, now: float) -> str:
        """`, ETA 0:03:20` at the speed so far."""
        first, began = self.before or (done, now)
        if done == first:
            return ""
        seconds = (self.total - done) * (now - began) / (done - first)
        return f", ETA {timedelta(seconds=round(seconds))}"
