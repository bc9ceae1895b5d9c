"""How far long work without torch has come: one line on stderr, rewritten on a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

LINE_SECONDS = 30.0  # between two lines where there is no terminal
DRAWN_SECONDS = 0.5  # between two looks on a terminal

Item = TypeVar("Item")


def counted(items: Iterable[Item], title: str, total: int, done: int = 0) -> Iterator[Item]:
    """The same items; `done` of `total` were there before."""
    terminal = sys.stderr.isatty()
    started = said = time.monotonic()
    number = 0
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= (DRAWN_SECONDS if terminal else LINE_SECONDS):
            said = now
            say(title, done + number, total, number / (now - started), "\r" if terminal else "\n")
    if terminal and number:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def say(title: str, done: int, total: int, rate: float, end: str) -> None:
    """`pack train: 12000 of 50000, 800 a second, 48 s to go`."""
    left = f", {max(0, total - done) / rate:.0f} s to go" if rate else ""
    print(f"{title}: {done} of {total}, {rate:.0f} a second{left}", end=end, file=sys.stderr, flush=True)
