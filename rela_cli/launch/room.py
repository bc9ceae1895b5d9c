"""How many cells have room on one GPU side by side: one until a first cell has run, then as many as memory allows.

Each process that has used a GPU notes what it took: into the folder that an environment variable names, so it does not
matter who started it. Whoever is about to start a cell reads the notes. Needs no torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rela_cli.errors import first_line
from rela_cli.machine import memory
from rela_cli.machine.processors import cores
from rela_cli.store.files import read_json
from rela_cli.store.notices import warn
from rela_cli.terminal import as_size

NOTES = "RELA_GPU_NOTES"  # names the folder of one GPU's notes
CONTEXT_BYTES = 600 << 20  # of a GPU, for a process that uses it, besides its tensors; assumed, not measured
SAFE = 0.9  # of the memory that is there: blocks of memory leave gaps, and a larger cell may come
MOST = 8  # cells on one GPU; each also needs a core, since a step is launched by the host


@dataclass(frozen=True)
class MemoryUse:
    """What one process took at the most, and what it and all other cells can take together; bytes."""

    gpu: int
    gpu_room: int
    host: int
    host_room: int | None

    @property
    def by_gpu(self) -> int:
        """How many such cells the GPU's memory has room for."""
        return int(SAFE * self.gpu_room / self.gpu)

    @property
    def by_host(self) -> int:
        """How many such cells the machine's own memory has room for."""
        return MOST if self.host_room is None else int(SAFE * self.host_room / max(1, self.host))


def note() -> None:
    """Write down what this process has taken of its GPU, where somebody wants to know; what it keeps unused goes back.

    It is called at the end of each run of this process. The room was measured beside other cells where there were some,
    so of the notes of one GPU the largest room counts, and the largest need.
    """
    folder, torch = os.environ.get(NOTES), sys.modules.get("torch")
    if not folder or torch is None or not torch.cuda.is_initialized():
        return
    try:
        write_note(Path(folder), now_taken())
    except (RuntimeError, OSError) as error:  # a GPU that answers nothing more, a full disk: the run's own error counts
        warn(f"what this run took of the GPU cannot be noted ({first_line(error)}), and does not count for the next")


def now_taken() -> MemoryUse:
    """What this process has taken until now."""
    from rela_cli.machine.device import gpu_memory

    peak, room = gpu_memory()
    free = memory.free()
    host_room = None if free is None else free + memory.held()
    return MemoryUse(peak + CONTEXT_BYTES, room + CONTEXT_BYTES, memory.peak(), host_room)


def write_note(folder: Path, taken: MemoryUse) -> None:
    """One note for each process, whole at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{os.getpid()}.tmp"
    temporary.write_text(json.dumps(asdict(taken)))
    os.replace(temporary, folder / f"{os.getpid()}.json")


@dataclass(frozen=True)
class Room:
    """One GPU, and a folder of its own for the notes of those that have used it; the same in every process."""

    name: str
    folder: Path
    most: int  # cells, whatever the memory
    said: int | None = None  # cells, where the user says it

    def taken(self) -> MemoryUse | None:
        """The largest need and the largest room of all notes; None while nothing has run."""
        notes = [MemoryUse(**found) for path in self.folder.glob("*.json") if (found := read_json(path))]
        if not notes:
            return None
        host_rooms = [one.host_room for one in notes if one.host_room is not None]
        gpu, gpu_room = max(one.gpu for one in notes), max(one.gpu_room for one in notes)
        return MemoryUse(gpu, gpu_room, max(one.host for one in notes), max(host_rooms, default=None))

    def cells(self) -> int:
        """How many cells this GPU may have now."""
        if self.said:
            return self.said
        taken = self.taken()
        return 1 if taken is None else max(1, min(self.most, taken.by_gpu, taken.by_host))

    def say(self, say: Callable[[str], object]) -> None:
        """One line when the number is known, and when it changes; of all processes the first one says it."""
        taken = self.taken()
        if taken is None or self.said:
            return
        with suppress(FileExistsError):
            (self.folder / f"said-{self.cells()}").touch(exist_ok=False)
            say(self.words(taken, self.cells()))

    def words(self, taken: MemoryUse, cells: int) -> str:
        """What was decided, and why."""
        why = f"the largest cell so far takes {as_size(taken.gpu)} of {as_size(taken.gpu_room)}"
        if cells < taken.by_gpu:
            by_host = f"of {as_size(taken.host_room or 0)} of the machine's memory it takes {as_size(taken.host)}"
            why += f"; {by_host}" if cells == taken.by_host < self.most else f"; no more than {self.most} of them here"
        at_once = f"{cells} cells side by side" if cells > 1 else "one cell at a time"
        return f"GPU {self.name}: {at_once} ({why})"

    @contextmanager
    def used(self, alone: bool = False) -> Iterator[None]:
        """Inside, a cell uses the GPU beside others, or `alone`: then it has waited for all others to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "use.lock").open("a") as file:  # the kernel frees it when the process dies
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield


def shares_there(rooms: Sequence[Room]) -> list[int]:
    """The shares that may be taken now; share i is of GPU i modulo their number: each GPU has its first cell first."""
    cells = [room.cells() for room in rooms]
    numbers = range(len(cells) * max(cells, default=0))
    return [number for number in numbers if number // len(cells) < cells[number % len(cells)]]


def most_cells(gpus: int, threads: int | None) -> int:
    """The most cells on each of some GPUs by the cores of this machine: one core a cell, or `threads` of them."""
    return max(1, min(MOST, len(cores()) // (max(1, gpus) * (threads or 1))))
