"""Run what a table is missing, a few processes at a time. One process makes the seeds of a column at one budget.

Who gets which cores and which GPU, and how many run at once, is up to `launch/shares.py`, as for any sweep.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rela_cli.commands.reproduce.runs import PlannedRun, PlannedRuns
from rela_cli.errors import Stopped
from rela_cli.launch import processes, sweep
from rela_cli.launch.owner import GRACE
from rela_cli.launch.shares import Shares
from rela_cli.store.files import read_json
from rela_cli.terminal import plural

POLL = 0.2  # seconds between looks at the processes


@dataclass
class Batch:
    """Runs that differ in their seed only: one sweep, in a process of its own."""

    runs: list[PlannedRun]
    log: Path
    process: processes.Process | None = None
    started: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.runs[0].column.name}, budget {self.runs[0].budget:g}"

    @property
    def waits(self) -> bool:
        return any(planned.waits for planned in self.runs)

    def words(self, launcher: str) -> list[str]:
        """What `rela` is told; without a launcher, one run after the other."""
        words = [word for word in self.runs[0].all_words if not word.startswith("seed=")]
        seeds = ",".join(str(planned.seed) for planned in self.runs)
        return ["train", "-m", f"hydra/launcher={launcher or 'basic'}", *words, f"seed={seeds}"]

    def start(self, launcher: str, shares: Shares) -> None:
        self.started = time.monotonic()
        self.process = processes.start(self.words(launcher), {**os.environ, **shares.variables}, self.log)


@dataclass
class Executor:
    """As many processes as the machine has shares for now; each run takes one."""

    runs: PlannedRuns
    shares: Shares
    out: Path
    say: Callable[[str], None]
    launcher: str = ""
    failed: list[str] = field(default_factory=list)

    def run(self, signals: Sequence[Stopped]) -> None:
        """Everything that is to do; a failed run is noted and the others go on.

        Raises:
            Stopped: the first of `signals`, once there is one; what was running has been told to save.
        """
        self.waiting, running = self.batches(), list[Batch]()
        self.total = self.left = len(self.waiting)
        while self.waiting or running:
            running = [batch for batch in running if not self.ended(batch)]
            running += self.started(len(self.shares.there_now(self.say_indented)) - len(running))
            if signals:
                processes.end_all([batch.process for batch in running if batch.process], GRACE)
                raise signals[0]
            if not running and self.waiting:
                self.give_up(self.waiting)
                return
            time.sleep(POLL)

    def started(self, room: int) -> list[Batch]:
        """Batches that have been started now: those whose prior is there, `room` of them at most."""
        ready = [batch for batch in self.waiting if not batch.waits][: max(0, room)]
        for batch in ready:
            self.waiting.remove(batch)
            batch.start(self.launcher, self.shares)
        return ready

    def say_indented(self, line: str) -> None:
        self.say(f"  {line}")

    def batches(self) -> list[Batch]:
        """What is to do, long ones first, so that no long one is left to run alone at the end."""
        groups: dict[str, list[PlannedRun]] = {}
        for planned in self.runs:
            if planned.state in ("to do", "waits"):
                words = [word for word in planned.words if not word.startswith("seed=")]
                groups.setdefault(" ".join(words) + (planned.teacher.key if planned.teacher else ""), []).append(
                    planned
                )
        teachers = {id(planned.teacher) for planned in self.runs if planned.teacher}
        ordered = sorted(groups.values(), key=lambda g: (-any(id(c) in teachers for c in g), -g[0].budget))
        return [Batch(group, self.out / "logs" / f"{number}.log") for number, group in enumerate(ordered, 1)]

    def ended(self, batch: Batch) -> bool:
        """Whether a process is over; says what came of it."""
        assert batch.process is not None
        if batch.process.poll() is None:
            return False
        self.left -= 1
        minutes = (time.monotonic() - batch.started) / 60
        bad = {number: planned for number, planned in enumerate(batch.runs) if not fresh(planned).done}
        result = f"{len(bad)} of {len(batch.runs)} failed, see {batch.log}" if bad else plural(len(batch.runs), "run")
        self.say_indented(f"[{self.total - self.left}/{self.total}] {batch.name}: {result}, {minutes:.1f} min")
        self.failed += [f"{batch.name}, seed {bad[number].seed}: {why_unfinished(batch, number)}" for number in bad]
        return True

    def give_up(self, waiting: Sequence[Batch]) -> None:
        """What waits for a prior that has failed."""
        for batch in waiting:
            self.say_indented(f"{batch.name}: not run, its prior is not there")
            self.failed.append(f"{batch.name}: its prior is not there")


def fresh(planned: PlannedRun) -> PlannedRun:
    """The run with its folder read again."""
    vars(planned).pop("run", None)
    return planned


def why_unfinished(batch: Batch, number: int) -> str:
    """Why a run of an ended process is not finished: what its sweep has noted, else how the process ended."""
    process = batch.process
    assert process is not None
    folder = sweep.folder_of(batch.runs[number].config.outputs, process.pid)
    record = read_json(folder / f"{number}.json") if folder else None
    if record and "message" in record:
        return str(record["message"]).splitlines()[0]
    if process.returncode < 0:
        return f"its process was ended by {signal.Signals(-process.returncode).name} (killed, or out of memory)"
    lines = batch.log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {process.returncode}"
