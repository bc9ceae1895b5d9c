"""Failures of a sweep's cells while the others go on: one line each, at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rela_cli.store.files import read_json
from rela_cli.store.notices import warn

POLL = 1.0  # seconds between looks into the sweep's folder


def failure(number: int, total: int, record: Mapping[str, Any]) -> str:
    """One line: which cell has failed, what its error was, and where its traceback is."""
    message = record["message"].splitlines()[0].rstrip(":")
    told = f"; traceback: {os.path.relpath(record['traceback'])}" if "traceback" in record else ""
    return f"cell {number + 1} of {total} failed ({' '.join(record['overrides'])}): {message}{told}"


@contextmanager
def failures_shown(folder: Path, total: int) -> Iterator[None]:
    """Inside, failures of cells that write into files of their own are shown on this process' stderr."""
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(folder, total, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def watch(folder: Path, total: int, over: threading.Event) -> None:
    """Look for new records of failed cells until it is over, and once more then."""
    seen: set[Path] = set()
    while True:
        is_last = over.wait(POLL)
        for path in sorted(set(folder.glob("*.json")) - seen):
            seen.add(path)
            record = read_json(path)
            if record and record["status"] == "failed":
                warn(failure(int(path.stem), total, record))
        if is_last:
            return
