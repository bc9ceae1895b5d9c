"""Run what a table is missing, a few processes at a time. One process makes the seeds of a column at one budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rela_cli.commands.reproduce.runs import PlannedRun, PlannedRuns
from rela_cli.errors import RelaError, Stopped, first_line, is_full
from rela_cli.launch.owner import GRACE
from rela_cli.launch.room import NOTES, Room, shares_there
from rela_cli.store.files import read_json
from rela_cli.terminal import plural

POLL = 0.2  # seconds between looks at the processes


@dataclass
class Batch:
    """Runs that differ in their seed only: one `rela train -m`."""

    runs: list[PlannedRun]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    lane: int = 0  # which share of the machine it has
    alone: bool = False  # whether nothing may run beside it: it has found its GPU full
    has_company: bool = False  # whether something runs beside it

    @property
    def name(self) -> str:
        return f"{self.runs[0].column.name}, budget {self.runs[0].budget:g}"

    @property
    def waits(self) -> bool:
        return any(planned.waits for planned in self.runs)

    def command(self, launcher: str) -> list[str]:
        """What a shell would be told."""
        words = [word for word in self.runs[0].all_words if not word.startswith("seed=")]
        seeds = ",".join(str(planned.seed) for planned in self.runs)
        is_sweep = len(self.runs) > 1 or launcher
        sweep = ["-m", f"hydra/launcher={launcher or 'basic'}"] if is_sweep else []  # who shares out the GPU: we do
        return [sys.executable, "-m", "rela_cli", "train", *sweep, *words, f"seed={seeds}"]

    def start(self, launcher: str, environment: dict[str, str]) -> None:
        self.started = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(launcher), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )


@dataclass
class Executor:
    """Up to `jobs` processes, each with its share of the cores, or its GPU where there are several."""

    runs: PlannedRuns
    jobs: int
    out: Path
    say: Callable[[str], None]
    launcher: str = ""
    gpus: Sequence[str] = ()  # as CUDA_VISIBLE_DEVICES has them
    rooms: Sequence[Room] = ()  # of each GPU, where memory and not `jobs` says how many processes it has
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
            self.start_some(running)
            if signals:
                stop(running)
                raise signals[0]
            if not running and self.waiting:
                self.give_up(self.waiting)
                return
            time.sleep(POLL)

    def start_some(self, running: list[Batch]) -> None:
        """Start what may be started now, and add it to what is running."""
        ready = [batch for batch in self.waiting if not batch.waits]
        together = [batch for batch in ready if not batch.alone]
        if not together and not running:
            together = ready[:1]
        for batch, lane in zip(together, self.free_lanes(running), strict=False):
            self.waiting.remove(batch)
            batch.lane = lane
            batch.start(self.launcher, self.environment(lane))
            running.append(batch)
        for batch in running:
            batch.has_company |= len(running) > 1

    def free_lanes(self, running: Sequence[Batch]) -> list[int]:
        """The shares of the machine that may be taken now: where memory decides, as many as are known to have room."""
        if any(batch.alone for batch in running):
            return []
        for room in self.rooms:
            room.say(lambda line: self.say(f"  {line}"))
        lanes, taken = shares_there(self.rooms) or range(self.jobs), {batch.lane for batch in running}
        return [lane for lane in lanes if lane not in taken][: max(0, len(lanes) - len(running))]

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

    def environment(self, lane: int) -> dict[str, str]:
        jobs = len(self.rooms) * max(room.cells() for room in self.rooms) if self.rooms else self.jobs
        own = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        own |= {NOTES: str(self.rooms[lane % len(self.rooms)].folder.resolve())} if self.rooms else {}
        return own | ({"CUDA_VISIBLE_DEVICES": self.gpus[lane % len(self.gpus)]} if len(self.gpus) > 1 else {})

    def ended(self, batch: Batch) -> bool:
        """Whether a process is over; says what came of it."""
        assert batch.process is not None
        if batch.process.poll() is None:
            return False
        minutes = (time.monotonic() - batch.started) / 60
        bad = [planned for planned in batch.runs if not fresh(planned).done]
        if batch.has_company and not batch.alone and any(is_full(why_unfinished(planned, batch)) for planned in bad):
            self.say(f"  {batch.name}: the GPU was full beside others; once more, alone, when these have ended")
            self.waiting.append(Batch(bad, batch.log.with_suffix(".again.log"), alone=True))
            return True
        self.left -= 1
        result = f"{len(bad)} of {len(batch.runs)} failed, see {batch.log}" if bad else plural(len(batch.runs), "run")
        self.say(f"  [{self.total - self.left}/{self.total}] {batch.name}: {result}, {minutes:.1f} min")
        self.failed += [f"{batch.name}, seed {planned.seed}: {why_unfinished(planned, batch)}" for planned in bad]
        return True

    def give_up(self, waiting: Sequence[Batch]) -> None:
        """What waits for a prior that has failed."""
        for batch in waiting:
            self.say(f"  {batch.name}: not run, its prior is not there")
            self.failed.append(f"{batch.name}: its prior is not there")


def fresh(planned: PlannedRun) -> PlannedRun:
    """The run with its folder read again."""
    vars(planned).pop("run", None)
    return planned


def why_unfinished(planned: PlannedRun, batch: Batch) -> str:
    """Why a run is not finished: its own words, else the last line of the log."""
    try:
        manifest = read_json(planned.run.folder / "manifest.json") or {}
    except RelaError as error:
        return first_line(error)
    if manifest.get("reason"):
        return str(manifest["reason"]).splitlines()[0]
    lines = batch.log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {batch.process.returncode if batch.process else '?'}"


def stop(running: Sequence[Batch]) -> None:
    """Tell processes to save and leave; those that do not are killed."""
    for batch in running:
        if batch.process and batch.process.poll() is None:
            batch.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for batch in running:
        if batch.process:
            try:
                batch.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                batch.process.kill()
