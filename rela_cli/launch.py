"""runtime.devices=N: the same command again in N processes, which torchrun starts and watches over.

torchrun itself turns every failure and every signal into 1; here the exit status is that of the process that failed
first, and a signal is handed on, once, as the SIGTERM that the processes save at. Needs no torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rela_cli.config import Config
from rela_cli.errors import RelaError, Stopped
from rela_cli.signals import collected

POLL = 0.1  # seconds between looks at the processes
STATUS = "RELA_STATUS"  # names the folder where each process notes its pid, and how it left
PR_SET_PDEATHSIG = 1  # Linux: the signal that a child gets when its parent dies


class RanksFailed(RelaError):
    """A process ended badly; it has said why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(command: str, words: Sequence[str], config: Config) -> None:
    """Run `rela command words` in `runtime.devices` processes.

    Raises:
        Stopped: a signal came, and they have left.
        RanksFailed: with the exit status of the first that failed.
    """
    count = config.runtime.devices
    with tempfile.TemporaryDirectory(prefix="rela-") as folder, collected("; the same command goes on") as signals:
        child = subprocess.Popen(
            [*torchrun(count), command, *words],
            env=environment(folder, count),
            start_new_session=True,  # a Ctrl-C is ours to hand on, once
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        try:
            status = watch(child, signals)
        finally:
            end(child, Path(folder))
        failed = first_failure(Path(folder), count)
    if signals:
        raise Stopped(str(signals[0]), signals[0].exit_code - 128)
    if status:
        raise RanksFailed(*(failed or (f"torchrun ended with {status}", 1)))


def torchrun(count: int) -> list[str]:
    """The command that starts `count` of us on this machine, and leaves it to us to speak."""
    return [sys.executable, "-m", "rela_cli.launch", "--standalone", f"--nproc-per-node={count}", "-m", "rela_cli"]


def agent(words: Sequence[str]) -> int:
    """torchrun itself, without its table and traceback of what the processes have said already."""
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(list(words))
    except ChildFailedError as error:
        first, _ = error.get_first_failure()
        (Path(os.environ[STATUS]) / "first").write_text(str(first))
        return 1
    except SignalException:
        return 1
    return 0


def environment(folder: str, count: int) -> dict[str, str]:
    """Ours, the place for notes, and each process' share of the cores."""
    share = str(max(1, (os.cpu_count() or 1) // count))
    return {"OMP_NUM_THREADS": share, **os.environ, STATUS: folder}


def die_with_parent() -> None:
    """Let torchrun be told to stop when we are killed: nobody would be left to do it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def watch(child: subprocess.Popen[bytes], signals: Sequence[Stopped]) -> int:
    """Wait for torchrun to end, and hand a first signal on to it; its exit status."""
    told = False
    while (status := child.poll()) is None:
        if signals and not told:
            child.terminate()
            told = True
        time.sleep(POLL)
    return status


def end(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Leave nobody behind: a torchrun that was killed cannot do it."""
    if child.poll() is None:
        child.kill()
    for path in folder.glob("pid-*"):
        with suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def first_failure(folder: Path, count: int) -> tuple[str, int] | None:
    """What ended the run, and its exit status. torchrun notes the first to end, but one that has lost touch is none."""
    number = noted(folder / "first")
    if number is None:
        return None
    code = noted(folder / f"exit-{number}")
    silent = [n for n in range(count) if (folder / f"pid-{n}").exists() and noted(folder / f"exit-{n}") is None]
    if code is not None and not (code == 1 and silent):
        return f"process {number} of {count} ended with status {code}", code
    gone = f"process {number if code is None else silent[0]} of {count} ended without a word (killed, or out of memory)"
    return f"{gone}; the same command goes on from the last checkpoint", 1


def noted(path: Path) -> int | None:
    """The number in a note, if it was written."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# ----------------------------------------------------------------------------------------- in the processes themselves


def note_start(rank: int) -> None:
    """Say that a process is there."""
    if folder := os.environ.get(STATUS):
        (Path(folder) / f"exit-{rank}").unlink(missing_ok=True)  # of one before a restart
        (Path(folder) / f"pid-{rank}").write_text(str(os.getpid()))


def note_end(rank: int, status: int) -> None:
    """Say how it leaves."""
    if folder := os.environ.get(STATUS):
        with suppress(OSError):  # whoever asked is gone
            (Path(folder) / f"exit-{rank}").write_text(str(status))
            (Path(folder) / f"pid-{rank}").unlink()


if __name__ == "__main__":
    sys.exit(agent(sys.argv[1:]))
