"""What runs at once, cells of a sweep or runs of a table: each has its share of this machine's cores, and a GPU.

A share is a lock in a folder, held for as long as its process lives and freed by the kernel when that dies. So it makes
no difference who has started the processes, or how many: those without a share wait. Under Slurm there are no shares.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from rela_cli.config.runtime import Runtime
from rela_cli.config.schema import Config
from rela_cli.errors import first_line, is_full
from rela_cli.launch import owner
from rela_cli.launch.owner import GRACE
from rela_cli.launch.room import NOTES, Room, most_cells, shares_there
from rela_cli.machine.memory import free_unused
from rela_cli.machine.processors import cores, visible_gpus
from rela_cli.store.notices import warn

T = TypeVar("T")

POLL = 0.2  # seconds between looks at what is free

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

FOREVER_MIN = 1_000_000  # minutes; a local cell has no time limit

CORES_A_CELL = 2  # without GPUs, where nobody says how many cells run at once

BASIC, JOBLIB, LOCAL, SLURM = (f"{name}Launcher" for name in ("Basic", "Joblib", "Local", "Slurm"))  # Hydra's classes

AT_ONCE = (JOBLIB, LOCAL)  # whose cells run side by side on this machine

SHARES = "RELA_SHARES"  # the shares of whoever has started this process, as JSON

_follows = False  # whether this process ends with the sweep

_taken: FileLock | None = None  # this process' share; joblib runs several cells in one process

_is_confined = False  # whether `confine` has given this process cores of its own


@dataclass(frozen=True)
class Shares:
    """How this machine is divided; picklable, and the same in every process of a sweep."""

    folder: Path
    count: int
    gpus: tuple[str, ...]
    cores: tuple[int, ...]  # none where the user says runtime.threads, or where one has the machine for itself
    sweep: str = ""  # the process that waits for the cells (`owner.stamp`)
    rooms: tuple[Room, ...] = ()  # of each GPU: how many of these shares there are, as far as that is known yet

    @property
    def variables(self) -> dict[str, str]:
        """The environment by which the sweeps of other processes take part in these shares."""
        return {SHARES: json.dumps(asdict(self), default=str)}

    def follow(self) -> None:
        """From now on this process ends when the sweep's is gone; a Ctrl-C is the sweep's to hand on, once."""
        global _follows
        if self.sweep and not _follows:
            _follows = True
            with suppress(OSError):  # it leads a session already
                os.setsid()
            owner.follow(self.sweep)

    def leave_if_alone(self) -> None:
        """Between two cells a worker waits for the next one, for ever if nobody is left to send it."""
        if self.sweep and not owner.is_alive(self.sweep):
            os._exit(128 + signal.SIGTERM)

    def take(self) -> str:
        """Wait for a share and confine this process to it, before torch is imported; in words."""
        global _taken
        if _taken is None:
            self.folder.mkdir(parents=True, exist_ok=True)  # of a long table: /tmp may have been tidied up
            number, _taken = self.first_free()
            confine(self.of(number), self.gpu(number))
        elif self.rooms:  # there may be more cells now, or fewer
            confine(self.of(taken_number()), None)
        number = taken_number()
        if self.rooms:
            os.environ[NOTES] = str(self.room(number).folder)
        words = [f"GPU {self.gpu(number)}"] if self.gpus else []
        words += [f"{len(own)} core{'s' * (len(own) > 1)}"] if (own := self.of(number)) else []
        return f" ({', '.join(words)})" if words else ""

    def first_free(self) -> tuple[int, FileLock]:
        while True:
            for number in self.there_now():
                lock = FileLock(self.folder / f"{number}.lock")
                with suppress(Timeout):
                    lock.acquire(timeout=0)
                    return number, lock
            time.sleep(POLL)

    def there_now(self, say: Callable[[str], object] = warn) -> list[int]:
        """The shares that may be taken now; a line says how many a GPU has room for, when that changes."""
        if not self.rooms:
            return list(range(self.count))
        for room in self.rooms:
            room.say(say)
        return [number for number in shares_there(self.rooms) if number < self.count]

    def at_once(self) -> int:
        """Among how many the cores are divided now."""
        return min(self.count, len(self.rooms) * max(room.cells() for room in self.rooms)) if self.rooms else self.count

    def of(self, number: int) -> tuple[int, ...]:
        """A share's cores: an equal part of them, or one that it has in common with others."""
        total, count = len(self.cores), self.at_once()
        if total < count:
            return (self.cores[number % total],) if total else ()
        number %= count  # there were more when it was taken
        return self.cores[number * total // count : (number + 1) * total // count]

    def gpu(self, number: int) -> str | None:
        return self.gpus[number % len(self.gpus)] if self.gpus else None

    def room(self, number: int) -> Room:
        return self.rooms[number % len(self.rooms)]

    def work(self, work: Callable[[], T]) -> T:
        """The work of a cell; if it finds its GPU full beside other cells, it is done again when they have ended."""
        if not self.rooms:
            return work()
        room = self.room(taken_number())
        is_beside = room.cells() > 1
        try:
            with room.used():
                return work()
        except Exception as error:
            if not is_beside or not is_full(error):
                raise
            why = first_line(error).partition(". ")[0]
            warn(f"the GPU was full beside other cells ({why}): once more, alone, when these have ended")
        with room.used(alone=True):  # here nothing holds the error any more, nor the tensors of its frames
            free_unused()
            return work()


def is_confined() -> bool:
    """Whether this process has cores of its own, and thread counts by them, from a share."""
    return _is_confined


def taken_number() -> int:
    """Which share this process has."""
    assert _taken is not None
    return int(Path(_taken.lock_file).stem)


def confine(own: Sequence[int], gpu: str | None) -> None:
    """Keep this process, and every library's threads in it, to some cores and one GPU."""
    global _is_confined
    _is_confined = bool(own)
    if own:
        os.environ |= dict.fromkeys(THREAD_VARIABLES, str(len(own)))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, own)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def shares_of_sweep(config: Config, launcher: dict[str, Any], folder: Path) -> Shares | None:
    """The shares that the cells of a sweep take; None where they run one by one with all there is, or on Slurm.

    Where whoever has started this process deals shares out, the cells take one of those, and the sweep ends with it.
    """
    kind = launcher_kind(launcher)
    if kind in (*AT_ONCE, BASIC) and (text := os.environ.get(SHARES)):
        dealt = shares_from(text)
        dealt.follow()
        return replace(dealt, sweep=owner.stamp())
    return divide(config.runtime, folder, launcher.get("n_jobs")) if kind in AT_ONCE else None


def shares_from(text: str) -> Shares:
    """The shares whose `variables` this is."""
    told = json.loads(text)
    rooms = tuple(Room(**{**room, "folder": Path(room["folder"])}) for room in told["rooms"])
    return Shares(Path(told["folder"]), told["count"], tuple(told["gpus"]), tuple(told["cores"]), told["sweep"], rooms)


def divide(runtime: Runtime, folder: Path, jobs: int | None = None) -> Shares:
    """This machine for what runs on it at once: `jobs` of them, unless `runtime` says it; by memory if nobody does."""
    found = () if runtime.device == "cpu" else in_groups(visible_gpus(), runtime.devices)
    at_once = runtime.cells_at_once or (jobs if jobs and jobs > 0 else 0)
    said = -(-at_once // len(found)) if at_once and found else runtime.cells_per_gpu
    most = said or most_cells(len(found), runtime.threads)
    count = at_once or len(found) * most or max(1, len(cores()) // CORES_A_CELL)
    own_cores = () if runtime.threads or count == 1 else tuple(cores())
    rooms = tuple(Room(name, folder / "gpus" / str(number), most, said) for number, name in enumerate(found))
    return Shares(folder / "shares", count, found, own_cores, owner.stamp(), rooms)


def in_groups(names: Sequence[str], size: int) -> tuple[str, ...]:
    """GPUs by the `size` that one run takes, as CUDA_VISIBLE_DEVICES has them."""
    return tuple(",".join(names[i : i + size]) for i in range(0, len(names) - size + 1, size))


def side_by_side(config: Config, launcher: dict[str, Any], said: Sequence[str]) -> list[str]:
    """What Hydra is told so that cells run side by side on GPUs, unless the user says a launcher; one line says so."""
    is_open = launcher_kind(launcher) == BASIC and not any("hydra/launcher=" in word for word in said)
    if not is_open or config.runtime.device == "cpu":
        return []
    gpus = in_groups(visible_gpus(), config.runtime.devices)
    if len(gpus) * (config.runtime.cells_per_gpu or most_cells(len(gpus), config.runtime.threads)) < 2:
        return []
    if find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        warn("cells run one after the other; pip install 'rela-cli[parallel]' for as many at once as have room")
        return []
    warn("cells run side by side where the GPU has room; hydra/launcher=basic has one after the other")
    return ["hydra/launcher=joblib"]


def launcher_kind(launcher: dict[str, Any]) -> str:
    """The name of a launcher's class."""
    return str(launcher.get("_target_", "")).rpartition(".")[2]


def settings(shares: Shares | None, launcher: dict[str, Any], said: Sequence[str]) -> list[str]:
    """What the launcher is told besides what the user says."""
    fitting = {"n_jobs": shares.count, "timeout_min": FOREVER_MIN} if shares else {}
    keys = [key for key in fitting if key in launcher and not any(f"hydra.launcher.{key}=" in word for word in said)]
    return [f"hydra.launcher.{key}={fitting[key]}" for key in keys]


# ------------------------------------------------------------------------------------------------------- stops


def note_pid(folder: Path, number: int) -> None:
    """So that whoever stops the sweep can tell its cells."""
    (folder / f"{number}.pid").write_text(json.dumps(os.getpid()))


def pass_signal_on(folder: Path, signum: int) -> None:
    """Pass a signal on to the cells on this machine that are not done, and give them time to save."""
    waiting = [path for path in folder.glob("*.pid") if not path.with_suffix(".json").exists()]
    pids = {int(path.read_text() or 0) for path in waiting} - {0, os.getpid()}
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and not all(path.with_suffix(".json").exists() or gone(path) for path in waiting):
        time.sleep(POLL)


def gone(path: Path) -> bool:
    """Whether the process that a note names has ended."""
    try:
        os.kill(int(path.read_text()), 0)
    except (ProcessLookupError, ValueError):
        return True
    return False


@contextmanager
def requeued() -> Iterator[None]:
    """Under submitit on Slurm: the signal ahead of the time limit stops the run first, then submitit requeues the job.

    The run stops as it does for SIGTERM, with a checkpoint, and the requeued job goes on from there.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        yield
        return
    if allowed := os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ |= {name: os.environ.get(name, allowed) for name in THREAD_VARIABLES}
    signum = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    requeue = signal.getsignal(signum)
    caught: list[FrameType | None] = []

    def stop(_: int, frame: FrameType | None) -> None:
        caught.append(frame)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signum, stop)
    try:
        yield
    finally:
        signal.signal(signum, requeue)
        if caught and callable(requeue):
            requeue(signum, caught[0])  # leaves the process
