"""How far long work has come: a bar on a terminal, elsewhere a line on stderr now and then. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rela_cli.distributed import ranks

LINE_SECONDS = 30.0  # between two lines where there is no terminal

DRAWN_SECONDS = 0.1  # between two looks at a bar

Item = TypeVar("Item")


class Progress:
    """What is done of a total: on a terminal a bar with ETA, elsewhere one plain line every 30 seconds."""

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
        now = time.monotonic()
        if self.bar:
            if now - self.said >= DRAWN_SECONDS or done == self.total:
                self.said = now
                self.bar.update(self.task, completed=done, note=note)
            return
        self.before = self.before or (done, now)
        if now - self.said >= LINE_SECONDS and not self.quiet:
            self.said = now
            line = f"{self.title}: {done} of {self.total}{self.eta(done, now)}  {note}".rstrip()
            print(line, file=sys.stderr, flush=True)

    def eta(self, done: int, now: float) -> str:
        """`, ETA 0:03:20` at the speed so far."""
        first, began = self.before or (done, now)
        if done == first:
            return ""
        seconds = (self.total - done) * (now - began) / (done - first)
        return f", ETA {timedelta(seconds=round(seconds))}"


def with_progress(items: Iterable[Item], title: str, total: int, done: int = 0) -> Iterator[Item]:
    """Pass the items on and show how many are done; `done` of `total` were finished before this call."""
    with Progress(title, total) as progress:
        for number, item in enumerate(items, start=done + 1):
            yield item
            progress.show(number)
