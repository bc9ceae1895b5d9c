"""runtime.devices=N: the same command again in N processes on this machine, started and watched over here.

They meet by a file in a folder that only this user can enter, and talk to each other over the loopback interface:
nothing listens to the network, and nothing that comes from outside is read. The exit status is that of the process that
failed first, and a signal is handed on, once, as the SIGTERM that the processes save at. Needs no torch.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rela_cli.config.schema import Config
from rela_cli.distributed import pulse
from rela_cli.distributed.ranks import MEETING
from rela_cli.errors import RelaError, Stopped, first_line, is_full
from rela_cli.launch import owner
from rela_cli.launch.owner import GRACE
from rela_cli.launch.processes import Process, end_all, start, stop_all
from rela_cli.launch.shares import THREAD_VARIABLES, is_confined
from rela_cli.machine.processors import cores
from rela_cli.machine.signals import collected
from rela_cli.store.notices import warn

POLL = 0.1  # seconds between looks at the processes
LOST_GRACE = 10.0  # seconds where one process has failed: the others can neither go on without it nor save
STATUS_VARIABLE = "RELA_STATUS"  # names the folder where each process notes its pid
STOPS = (129, 130, 143)  # exit statuses of a process that a signal has stopped in good order


class RanksFailed(RelaError):
    """A process ended badly; it has said why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_ranks(command: str, words: Sequence[str], config: Config) -> None:
    """Run `rela command words` in `runtime.devices` processes.

    Raises:
        Stopped: a signal came, and they have left.
        RanksFailed: with the exit status of the first that failed.
        RelaError: one of them hangs.
    """
    count = config.runtime.devices
    children: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="rela-") as folder, collected("; the same command goes on") as signals:
        try:
            for rank in range(count):
                children.append(start([command, *words], environment(folder, rank, count)))
            pids, limit = [child.pid for child in children], 60.0 * config.runtime.hang_minutes
            moves = pulse.StallWatch(Path(folder), pids, warn, limit)
            statuses = watch(children, signals, moves)
        finally:
            end_all(children, 0.0)
        full = found_full(Path(folder))
    if signals:
        raise Stopped(str(signals[0]), signals[0].exit_code - 128)
    if failure := first_failure(statuses):
        message, status = failure
        raise RanksFailed(f"{message}: {full}" if full else message, status)


def environment(folder: str, rank: int, count: int) -> dict[str, str]:
    """Ours, who this process is, where all meet, and its part of the cores, unless the user says how many threads."""
    threads = str(max(1, len(cores()) // count))
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        **(dict.fromkeys(THREAD_VARIABLES, threads) if is_confined() else {}),  # `confine` gave all of them to the cell
        **{name: str(value) for name, value in place.items()},
        **dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback()),
        STATUS_VARIABLE: folder,
        MEETING: str(Path(folder) / "meeting"),
        owner.OWNER: owner.stamp(),
    }


def loopback() -> str:
    """The name of the interface that reaches nobody but this machine: lo, or lo0."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def watch(children: Sequence[Process], signals: Sequence[Stopped], moves: pulse.StallWatch) -> list[int | None]:
    """Wait until all have left, or the first has failed; their exit statuses then, None for those still there."""
    deadline, told = math.inf, False
    while None in (statuses := [child.poll() for child in children]):
        if any(is_failure(status) for status in statuses):
            time.sleep(POLL)  # one that was killed, and one that has noticed it, may end the other way round
            statuses = [child.poll() for child in children]
            end_all(children, LOST_GRACE)
            return statuses
        if signals and not told:
            stop_all(children)
            told = True
        if told or any(status in STOPS for status in statuses):
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            late = [str(rank) for rank, status in enumerate(statuses) if status is None]
            warn(f"process {', '.join(late)} of {len(children)} did not leave within {GRACE:.0f} s, and is ended now")
            break
        moves.look([rank for rank, status in enumerate(statuses) if status is None])
        time.sleep(POLL)
    return statuses


def is_failure(status: int | None) -> bool:
    """Whether a process has ended, neither well nor because it was told to."""
    return status not in (None, 0, *STOPS)


def first_failure(statuses: Sequence[int | None]) -> tuple[str, int] | None:
    """What ended the run, and its exit status: a process that was killed, else one that had more to say than 1.

    Those that have lost touch with it end with 1.
    """
    failed = {rank: status for rank, status in enumerate(statuses) if status}
    if not failed:
        return None
    rank, status = min(failed.items(), key=lambda pair: (pair[1] > 0, pair[1] == 1))
    if status > 0:
        return f"process {rank} of {len(statuses)} ended with status {status}", status
    gone = f"process {rank} of {len(statuses)} ended without a word (killed, or out of memory)"
    return f"{gone}; the same command goes on from the last checkpoint", 1


# ----------------------------------------------------------------------------------------- in the processes themselves


def note_start(rank: int) -> None:
    """Say that a process is there, and leave when whoever started it is gone."""
    owner.follow(os.environ.get(owner.OWNER))
    if folder := os.environ.get(STATUS_VARIABLE):
        (Path(folder) / f"pid-{rank}").write_text(str(os.getpid()))
        pulse.begin_notes(Path(folder) / f"at-{rank}")


def note_full(error: BaseException) -> None:
    """Say that a GPU was full, which whoever started the processes cannot see in their exit status."""
    folder = os.environ.get(STATUS_VARIABLE)
    if folder and is_full(error):
        with suppress(OSError):
            (Path(folder) / f"full-{os.getpid()}").write_text(first_line(error), encoding="utf-8")


def found_full(folder: Path) -> str:
    """What a process has said of its full GPU; empty where none has."""
    return next((path.read_text(encoding="utf-8") for path in sorted(folder.glob("full-*"))), "")


def note_end(rank: int) -> None:
    """Say that it leaves; the last one, where nobody is left to do it, removes the folder."""
    if folder := os.environ.get(STATUS_VARIABLE):
        pulse.end_notes()
        with suppress(OSError):
            (Path(folder) / f"pid-{rank}").unlink()
        starter = os.environ.get(owner.OWNER)
        if starter and not owner.is_alive(starter) and not list(Path(folder).glob("pid-*")):
            shutil.rmtree(folder, ignore_errors=True)
