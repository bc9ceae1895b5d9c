"""A sweep's bookkeeping. Hydra reports the first failure only, and a sys.exit in a cell ends it silently.

So each cell writes its outcome as one JSON file into the sweep's folder, whichever process it runs in, and the
parent reads them back: a cell without a file was killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.config.compose import Composer, hand_over
from rela_cli.distributed import ranks
from rela_cli.errors import ConfigError, RelaError
from rela_cli.launch.job import Job
from rela_cli.launch.news import failure, failures_shown
from rela_cli.launch.shares import (
    AT_ONCE,
    BASIC,
    JOBLIB,
    LOCAL,
    SLURM,
    Shares,
    launcher_kind,
    note_pid,
    pass_signal_on,
    requeued,
    settings,
    shares_of_sweep,
    side_by_side,
)
from rela_cli.launch.together import together
from rela_cli.machine import signals
from rela_cli.store.files import read_json, write_text
from rela_cli.store.notices import warn
from rela_cli.store.secrets import redact
from rela_cli.terminal import plural

if TYPE_CHECKING:
    from omegaconf import DictConfig

CellRecord = dict[str, Any]


_begun: set[int] = set()  # the cells of this process
_unwritten: dict[int, CellRecord] = {}  # what came of them, where it could not be written


class SweepStopped(BaseException):
    """Leaves Hydra's loop over the cells, which catches every `Exception`; its argument is the exit status."""


@dataclass(frozen=True)
class CellTask:
    """Hydra's task for one cell: run it, write down what came of it, and let the next one start."""

    job: Job
    folder: Path
    total: int
    shares: Shares | None = None  # of this machine, where cells or sweeps run at once
    launcher: str = BASIC

    def __call__(self, tree: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        node = HydraConfig.get()
        number, overrides = int(node.job.num), list(node.overrides.task)
        scrub(Path(node.sweep.dir) / "multirun.yaml")
        if self.shares:
            self.shares.follow()
        try:
            with requeued(), together(self.folder, number) if self.launcher == JOBLIB else nullcontext():
                self.run(tree, number, overrides)
        finally:
            if self.shares:
                self.shares.leave_if_alone()

    def run(self, tree: DictConfig, number: int, overrides: Sequence[str]) -> None:
        """One cell, on its share of the machine, and the file that says what came of it."""
        with signals.between():
            record = {"overrides": overrides, **self.attempt(tree, number, overrides)}
        try:
            self.write(number, record)
        except OSError as error:  # a full disk: the cell is what it is, and the others go on
            warn(f"what came of cell {number + 1} cannot be written down: {error}")
            _unwritten[number] = record
        if record["status"] == "failed":  # stderr, where lines of cells that run at once are shown at once
            warn(failure(number, self.total, record))
        self.say_rest()
        if record["status"] == "stopped":
            raise SweepStopped(record["exit_code"])

    def write(self, number: int, record: CellRecord) -> None:
        """The cell's files in the sweep's folder."""
        trace = record.pop("trace", None)
        if trace:
            record["traceback"] = str(self.folder / f"{number}.traceback.txt")
            Path(record["traceback"]).write_text(redact(trace))
        _write(self.folder / f"{number}.json", record)

    def say_rest(self) -> None:
        """How many cells are done, and how long the others will take if they are like those that have run."""
        records = [*filter(None, map(read_json, self.folder.glob("*.json"))), *_unwritten.values()]
        left = self.total - len(records)
        spent = [record.get("seconds", 0.0) for record in records if record["status"] == "run"]
        if left > 0 and spent:
            at_once = self.shares.at_once() if self.shares and self.launcher != BASIC else 1
            seconds = sum(spent) / len(spent) * left / min(left, at_once)
            shown = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
            print(f"{len(records)} of {self.total} cells done; all of them in about {shown}", flush=True)

    def attempt(self, tree: DictConfig, number: int, overrides: Sequence[str]) -> CellRecord:
        """Run the cell; nothing comes out of it but its record."""
        try:
            where = ""
            _begun.add(number)
            from rela_cli.pipeline.screen import BRIEF  # brings the datasets, which a config error should not wait for

            os.environ[BRIEF] = "1"
            if self.shares:
                note_pid(self.folder, number)
                where = self.shares.take()
            print(redact(f"\ncell {number + 1} of {self.total}{where}: {' '.join(overrides)}"), flush=True)
            started = time.monotonic()  # with its share: what it has waited for that is no part of its time
            work = partial(self.job.run, tree, overrides)
            outcome = self.shares.work(work) if self.shares else work()
            folder = str(Path(outcome.folder).resolve()) if outcome.folder else None
            seconds = time.monotonic() - started
            return {"status": outcome.status, "exit_code": 0, "folder": folder, "seconds": seconds}
        except KeyboardInterrupt as error:
            return {"status": "stopped", "exit_code": getattr(error, "exit_code", 130), "message": str(error)}
        except (Exception, SystemExit) as error:
            return _failure(error)


def _failure(error: Exception | SystemExit) -> CellRecord:
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) and error.code else 1
        message = f"something in this cell called sys.exit({error.code!r})"
    else:
        code = error.exit_code if isinstance(error, RelaError) else 1
        message = f"{type(error).__name__}: {error}"
    return {"status": "failed", "exit_code": code, "message": message, "trace": traceback.format_exc()}


def _write(path: Path, record: CellRecord) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(redact(record), indent=1))
    os.replace(temporary, path)


def scrub(path: Path) -> None:
    """Take secrets out of Hydra's own copy of the config, which lies there before the first cell starts."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if redact(tree) != tree:
        write_text(path, yaml.safe_dump(redact(tree)))


def run_sweep(job: Job) -> int:
    """Check every cell, run them all, and say what came of each; the exit status of the whole.

    Raises:
        ConfigError: when a cell is wrong; then nothing has been started.
    """
    if ranks.world() > 1:
        raise ConfigError("a sweep under torchrun has no meaning; say rela train -m runtime.devices=N for several GPUs")
    composer = Composer(job.line)
    cells, first = composer.cells()
    composer.say_notes()
    launcher = composer.launcher()
    if first.runtime.dry_run:
        return dry_run(cells, launcher, Path(first.paths.outputs))
    if len(cells) > 1 and (more := side_by_side(first, launcher, job.line.overrides)):
        job = replace(job, line=replace(job.line, overrides=(*job.line.overrides, *more)))
        launcher = Composer(job.line).launcher()
    folder = _new_folder(Path(first.paths.outputs))
    shares = shares_of_sweep(first, launcher, folder)
    words = [*_own_folder(job, folder), *settings(shares, launcher, job.line.overrides)]
    kind = launcher_kind(launcher)
    is_elsewhere = kind in (LOCAL, SLURM)  # what cells print goes to files
    if is_elsewhere:
        print(f"{plural(len(cells), 'cell')}; what they say stands in {os.path.relpath(folder)}/.submitit", flush=True)
    task = CellTask(job, folder, len(cells), shares, kind)
    news = failures_shown(folder, len(cells)) if is_elsewhere else nullcontext()
    stop, trouble = launched(task, news, words)
    begun = _begun | {int(path.stem) for path in folder.glob("*.pid")}
    if trouble and not begun and kind != SLURM:
        raise RelaError(f"no cell was started{trouble}{_way_out(job)}")
    records = [_read(folder, number, cell, stop, trouble, number in begun) for number, cell in enumerate(cells)]
    return report(records, stop)


def launched(task: CellTask, news: AbstractContextManager[object], words: Sequence[str]) -> tuple[int, str]:
    """Have Hydra's launcher run the cells: the exit status of what stopped it (0: nothing did), and what went wrong."""
    _begun.clear()  # both are of an earlier sweep of this process
    _unwritten.clear()
    try:
        with news, signals.between(partial(pass_signal_on, task.folder) if task.launcher in AT_ONCE else None):
            hand_over(task.job.command, task.job.line, task, *words)
    except KeyboardInterrupt as interrupt:  # between cells: inside of one it is the cell's
        return getattr(interrupt, "exit_code", 130), ""
    except SweepStopped as stopped:
        return stopped.args[0], ""
    except Exception as error:  # the launcher's: a cell's own never get here
        return 0, f": {type(error).__name__}: {error}"
    return 0, ""


def _way_out(job: Job) -> str:
    """Hydra's own folder may be where nobody can write."""
    said = [word for word in job.line.overrides if word.startswith("hydra.sweep.dir=")]
    return f" ({said[0]} has to be a folder that can be written to)" if said else ""


def dry_run(cells: Sequence[Sequence[str]], launcher: CellRecord, outputs: Path) -> int:
    """What would be started, and on Slurm the script that says so."""
    if launcher_kind(launcher) == SLURM:
        from rela_cli.launch.slurm import script

        print(script(launcher, outputs.resolve() / "sweeps" / "DATE", len(cells)))
    for number, cell in enumerate(cells):
        print(redact(f"cell {number + 1} of {len(cells)}: {' '.join(cell)}"))
    return 0


def folder_of(outputs: Path, pid: int) -> Path | None:
    """The folder of the sweep that a process has run, the last one where that number was given away several times."""
    return max((outputs / "sweeps").glob(f"*_{pid}"), default=None)


def _new_folder(outputs: Path) -> Path:
    folder = outputs.resolve() / "sweeps" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RelaError(f"cannot make {folder}: {error.strerror}; choose another place with paths.outputs=") from error
    return folder


def _own_folder(job: Job, folder: Path) -> list[str]:
    """Hydra's own files go where ours go, unless the user says otherwise."""
    if any(word.startswith("hydra.sweep.dir=") for word in job.line.overrides):
        return []
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.sweep.dir='{quoted}'"]


def _read(folder: Path, number: int, cell: Sequence[str], stop: int, trouble: str, begun: bool) -> CellRecord:
    """What came of a cell; of one that has left no record, what can be told."""
    if record := _unwritten.get(number) or read_json(folder / f"{number}.json"):
        return record
    ended = "the process ended without a word (killed, or out of memory)"
    message = (ended if begun or stop else "it was not started") + trouble
    if (said := folder / f"{number}.out").exists():
        message += f"; what it had said: {os.path.relpath(said)}"
    return {
        "status": "stopped" if stop else "failed",
        "exit_code": stop or 1,
        "message": message,
        "overrides": list(cell),
    }


def report(records: Sequence[CellRecord], stop: int = 0) -> int:
    """Print the table, every failure and the closing line; the exit status."""
    counts = Counter(record["status"] for record in records)
    _print_table([Path(record["folder"]) for record in records if record.get("folder")])
    failed = [(number, record) for number, record in enumerate(records) if record["status"] == "failed"]
    for number, record in failed:
        print(f"\nfailed: cell {number + 1}: {' '.join(record['overrides'])}")
        print(f"  {record['message']}")
        if "traceback" in record:
            print(f"  traceback: {os.path.relpath(record['traceback'])}")
    if stop:
        print_progress(records)
    unfinished = f", {counts['stopped']} not finished" if counts["stopped"] else ""
    cells = plural(len(records), "cell")
    print(f"{cells}: {counts['run']} run, {counts['found']} found, {counts['failed']} failed{unfinished}")
    return stop or max((record["exit_code"] for _, record in failed), default=0)


def print_progress(records: Sequence[CellRecord]) -> None:
    """After a stop: which cells are done and which are not."""
    print("\nstopped; the same command goes on with what is not done")
    for number, record in enumerate(records):
        word = {"run": "done", "found": "done", "failed": "failed"}.get(record["status"], "not done")
        print(f"  {word:<9} cell {number + 1}: {' '.join(record['overrides'])}")


def _print_table(folders: Sequence[Path]) -> None:
    if not folders:
        return
    try:
        from rela_cli.report.tables.tables import print_table

        print_table(list(dict.fromkeys(folders)))
    except Exception as error:  # the runs are done; their summary must still come
        print(f"rela: no table ({type(error).__name__}: {error}); try: rela table", file=sys.stderr)
