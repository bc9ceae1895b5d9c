"""How far long work without torch has come: one line on stderr, rewritten on a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rela_cli.distributed import ranks

LINE_SECONDS = 30.0  # between two lines where there is no terminal

DRAWN_SECONDS = 0.5  # between two looks on a terminal

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], title: str, total: int, done: int = 0) -> Iterator[Item]:
    """Pass the items on and show how many are done; `done` of `total` were finished before this call."""
    terminal = sys.stderr.isatty()
    started = said = time.monotonic()
    number = 0
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= (DRAWN_SECONDS if terminal else LINE_SECONDS):
            said = now
            show_progress(title, done + number, total, number / (now - started), "\r" if terminal else "\n")
    if terminal and number:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def show_progress(title: str, done: int, total: int, rate: float, end: str) -> None:
    """`pack train: 12000 of 50000, 800 a second, 48 s to go`."""
    left = f", {max(0, total - done) / rate:.0f} s to go" if rate else ""
    print(f"{title}: {done} of {total}, {rate:.0f} a second{left}", end=end, file=sys.stderr, flush=True)


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
