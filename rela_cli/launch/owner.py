"""Processes that must not outlive the one that started them: the ranks of a run, and the cells of a sweep.

A process is named by its number and the time it started, so a number that the system has given away again is nobody's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

POLL = 1.0  # seconds between looks
GRACE = 60.0  # seconds that a process which was told to stop has to save and leave; then it is ended
OWNER = "RELA_OWNER"  # names the owner, for a process that was started by a command line


def stamp(pid: int | None = None) -> str:
    """`<pid>:<start time>` of a process, this one unless said otherwise; without the time where there is no /proc.

    Raises:
        ProcessLookupError: there is no such process any more.
    """
    pid = os.getpid() if pid is None else pid
    if not Path("/proc/self/stat").exists():
        os.kill(pid, 0)
        return str(pid)
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    if state in "ZX":
        raise ProcessLookupError(f"process {pid} has ended")
    return f"{pid}:{rest[18]}"


def is_alive(owner: str) -> bool:
    """Whether the process with this stamp is still there."""
    try:
        return stamp(int(owner.partition(":")[0])) == owner
    except (ProcessLookupError, PermissionError):
        return False


def follow(owner: str | None) -> None:
    """End this process when its owner is gone: told by SIGTERM, so that it saves, and after a minute in any case."""
    if owner:
        threading.Thread(target=_watch, args=(owner,), name="owner", daemon=True).start()


def _watch(owner: str) -> None:
    while is_alive(owner):
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
