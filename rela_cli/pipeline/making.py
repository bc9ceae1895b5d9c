"""An entry of the cache, made by all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rela_cli.distributed import ranks
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts
from rela_cli.store.integrity import damage


def is_intact(entry: Entry) -> bool:
    """Whether an entry is there, contents and all; then what it was made of need not be read."""
    return damage(entry.folder, contents=True) is None


def make_together(
    entry: Entry, fill: Callable[[Path | None], Facts], needed: int | None = None, goes_on: bool = False
) -> None:
    """Make an entry unless it is there. Several ranks fill it together, but only rank 0 has a folder to write to."""
    if not ranks.is_first():
        if ranks.agree(False):
            fill(None)
        ranks.agree(None)
        return
    begun = []

    def begin(folder: Path) -> Facts:
        begun.append(ranks.agree(True))
        return fill(folder)

    entry.make(begin, needed, goes_on)
    if not begun:
        ranks.agree(False)
    ranks.agree(None)  # it is there, for everybody
