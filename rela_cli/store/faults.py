"""Faults on demand: how a test kills this process at a named point of a writer, as `kill -9` would.

RELA_FAULT=checkpoint.after_write ends it when it gets there, checkpoint.after_write:3 the third time. This is the only
place that reads the variable, and writers are the only ones to call it.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

# of every atomic write, in order
FAULT_POINTS = ("before_write", "after_write", "after_fsync", "after_replace", "after_sync")
_passed: Counter[str] = Counter()


def fault(point: str) -> None:
    """Nothing, unless RELA_FAULT names this point."""
    name, _, time = os.environ.get("RELA_FAULT", "").partition(":")
    if name == point:
        _passed[point] += 1
        if _passed[point] == int(time or 1):
            os.kill(os.getpid(), signal.SIGKILL)
