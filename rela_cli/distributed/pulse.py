"""Whether the processes of one run still move: each notes where it is, and the one that started them looks.

A process that dies is seen by itself; one that hangs keeps the others waiting without a word. So a thread in each
writes a small file every second: that it is written says that the process answers. Needs no torch.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rela_cli.errors import RelaError

WATCHERS = 2  # ranks that watch where nobody else does: one would not see itself hang
EVERY = 1.0  # seconds between two notes of a process, and two looks at them
QUIET = 60.0  # seconds in which none has gone on until it is said; then after twice as long, and so on
LIMIT = 6 * 3600.0  # seconds in which none has gone on until the run is ended; between training steps it may be fewer


@dataclass
class Note:
    """Where a process is. Without any news of it: at its start."""

    pulse: int = 0  # notes so far
    moves: int = 0  # steps and answers of the others so far
    place: str = "its start"
    waits: int = 0  # for how many answers of the others; more than 0 is waiting
    in_steps: bool = False  # between two training steps, which are never hours apart


this_process = Note()
_ended = threading.Event()


def at(place: str, in_steps: bool = False) -> None:
    """Note where this process is."""
    this_process.place, this_process.in_steps = place, in_steps
    this_process.moves += 1


@contextmanager
def waiting() -> Iterator[None]:
    """The others have to do the same before this goes on; also a decorator."""
    this_process.waits += 1
    yield  # an error ends the process
    this_process.waits -= 1
    this_process.moves += 1


def begin_notes(path: Path) -> None:
    """Write this process's note to `path` from now on."""
    _ended.clear()
    threading.Thread(target=_write, args=(path,), name="pulse", daemon=True).start()


def end_notes() -> None:
    """No more notes."""
    _ended.set()
    for thread in threading.enumerate():
        if thread.name == "pulse":
            thread.join()


def _write(path: Path) -> None:
    while not _ended.is_set():
        this_process.pulse += 1
        with suppress(OSError):
            path.write_text(json.dumps(asdict(this_process)))
        _ended.wait(EVERY)


class StallWatch:
    """Says which process the others wait for. It has no opinion while the first is at work outside the training steps.

    That one may decode a large dataset, or wait for another run that does, and says so itself. `step_limit`: seconds in
    which none may go on while all are between two training steps.
    """

    def __init__(
        self, folder: Path, pids: Sequence[int], warn: Callable[[str], object], step_limit: float = LIMIT
    ) -> None:
        self.folder, self.pids, self.warn, self.step_limit = folder, pids, warn, step_limit
        self.notes = [Note() for _ in pids]
        self.silent = [0.0 for _ in pids]  # seconds since a process's last note
        self.quiet, self.due = 0.0, QUIET
        self.looked = time.monotonic()

    def look(self, running: Sequence[int]) -> None:
        """Look at the processes that run, by their ranks.

        Raises:
            RelaError: none has gone on for `LIMIT`, or for `step_limit` between training steps.
        """
        passed = time.monotonic() - self.looked
        if passed < EVERY:
            return
        self.looked += passed
        self.count(running, min(passed, 2 * EVERY))  # no more: this process was stopped too, or the machine slept
        limit = self.limit(running)
        if self.quiet >= limit:
            raise RelaError(f"{self.words(running)}. Ended; the same command goes on from the last checkpoint")
        if self.quiet >= self.due:
            self.due *= 2
            self.warn(f"{self.words(running)}; after {limit / 60:.4g} minutes of it the run is ended")

    def limit(self, running: Sequence[int]) -> float:
        """Seconds in which none may go on where the processes are now."""
        are_in_steps = all(self.notes[rank].in_steps for rank in running)
        return min(LIMIT, self.step_limit) if are_in_steps else LIMIT

    def count(self, running: Sequence[int], seconds: float) -> None:
        """Read the notes, `seconds` after the last time."""
        before, self.notes = self.notes, [self.read(rank) for rank in range(len(self.pids))]
        for rank, (old, new) in enumerate(zip(before, self.notes, strict=True)):
            self.silent[rank] = 0.0 if new.pulse != old.pulse else self.silent[rank] + seconds
        moved = any(self.notes[rank].moves != before[rank].moves for rank in running)
        if moved or (0 in running and self.is_at_work(0)):
            self.quiet, self.due = 0.0, QUIET
        else:
            self.quiet += seconds

    def read(self, rank: int) -> Note:
        """The last note of a process; one that is being written is not yet there."""
        try:
            return Note(**json.loads((self.folder / f"at-{rank}").read_text()))
        except (OSError, ValueError):
            return self.notes[rank]

    def called(self, rank: int) -> str:
        """What a person finds a process by."""
        return f"pid {self.pids[rank]}"

    def is_at_work(self, rank: int) -> bool:
        """Whether a process answers, waits for no other, and does what may take hours."""
        note = self.notes[rank]
        return self.silent[rank] < QUIET / 2 and not note.waits and not note.in_steps

    def words(self, running: Sequence[int]) -> str:
        """Who is waited for, and where it is."""
        silent = [rank for rank in running if self.silent[rank] >= QUIET / 2]
        behind = silent or [rank for rank in running if not self.notes[rank].waits] or running
        names = ", ".join(
            f"process {rank} of {len(self.pids)} ({self.called(rank)}, last at {self.notes[rank].place})"
            for rank in behind
        )
        why = "which does not answer" if silent else "which answers but does not go on"
        return f"nothing has moved for {self.quiet:.0f} s: the run waits for {names}, {why}"


class StoreWatch(StallWatch):
    """The same by one of the ranks themselves, where torchrun has started them: notes lie in its store."""

    def __init__(self, store: Any, world: int, warn: Callable[[str], object], step_limit: float) -> None:
        super().__init__(Path(), range(world), warn, step_limit)
        self.store = store

    def read(self, rank: int) -> Note:
        """The last note of a process."""
        return Note(**json.loads(self.store.get(f"at-{rank}")))

    def called(self, rank: int) -> str:
        """Its machine and number there."""
        return str(self.store.get(f"who-{rank}").decode())


@contextmanager
def watched_by_themselves(
    store: Any, rank: int, world: int, warn: Callable[[str], object], step_limit: float
) -> Iterator[None]:
    """Inside, ranks note in a store where they are, and the first two end themselves where none goes on."""
    store.set(f"who-{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
    ended, watch = threading.Event(), StoreWatch(store, world, warn, step_limit) if rank < WATCHERS else None

    def note_and_look() -> None:
        while not ended.is_set():
            this_process.pulse += 1
            with suppress(RuntimeError):  # the store is gone, and with it torchrun, which ends the ranks
                store.set(f"at-{rank}", json.dumps(asdict(this_process)))
                if watch:
                    end_where_none_goes_on(watch)
            ended.wait(EVERY)

    thread = threading.Thread(target=note_and_look, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * EVERY)


def end_where_none_goes_on(watch: StallWatch) -> None:
    """Look; end this process where the watch says so, as it cannot be told while it waits: torchrun ends the others."""
    try:
        watch.look(range(len(watch.pids)))
    except RelaError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
