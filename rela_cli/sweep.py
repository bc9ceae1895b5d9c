"""A sweep's bookkeeping. Hydra reports the first failure only, and a sys.exit in a cell ends it silently.

So each cell writes its outcome as one JSON file into the sweep's folder, whichever process it runs in, and the
parent reads them back: a cell without a file was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli import ranks, signals
from rela_cli.artifacts import write_atomic
from rela_cli.cells import Shares, divide, kind_of, note_pid, requeued, settings, tell
from rela_cli.composer import Composer, hand_over
from rela_cli.errors import ConfigError, RelaError
from rela_cli.job import Job
from rela_cli.redact import redact

if TYPE_CHECKING:
    from omegaconf import DictConfig

Record = dict[str, Any]


class SweepStopped(BaseException):
    """Leaves Hydra's loop over the cells, which catches every `Exception`; its argument is the exit status."""


@dataclass(frozen=True)
class CellTask:
    """Hydra's task for one cell: run it, write down what came of it, and let the next one start."""

    job: Job
    folder: Path
    total: int
    shares: Shares | None = None  # of this machine, where cells run at once

    def __call__(self, tree: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        node = HydraConfig.get()
        number, overrides = int(node.job.num), list(node.overrides.task)
        scrub(Path(node.sweep.dir) / "multirun.yaml")
        with requeued():
            self.run(tree, number, overrides)

    def run(self, tree: DictConfig, number: int, overrides: Sequence[str]) -> None:
        """One cell, on its share of the machine, and the file that says what came of it."""
        with signals.between():
            record = self.attempt(tree, number, overrides)
        trace = record.pop("trace", None)
        if trace:
            record["traceback"] = str(self.folder / f"{number}.traceback.txt")
            Path(record["traceback"]).write_text(redact(trace))
        _write(self.folder / f"{number}.json", {"overrides": overrides, **record})
        if record["status"] == "stopped":
            raise SweepStopped(record["exit_code"])

    def attempt(self, tree: DictConfig, number: int, overrides: Sequence[str]) -> Record:
        """Run the cell; nothing comes out of it but its record."""
        try:
            where = ""
            if self.shares:
                note_pid(self.folder, number)
                where = self.shares.take()
            print(redact(f"\ncell {number + 1} of {self.total}{where}: {' '.join(overrides)}"), flush=True)
            outcome = self.job.run(tree, overrides)
            folder = str(Path(outcome.folder).resolve()) if outcome.folder else None
            return {"status": outcome.status, "exit_code": 0, "folder": folder}
        except KeyboardInterrupt as error:
            return {"status": "stopped", "exit_code": getattr(error, "exit_code", 130), "message": str(error)}
        except (Exception, SystemExit) as error:
            return _failure(error)


def _failure(error: Exception | SystemExit) -> Record:
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) and error.code else 1
        message = f"something in this cell called sys.exit({error.code!r})"
    else:
        code = error.exit_code if isinstance(error, RelaError) else 1
        message = f"{type(error).__name__}: {error}"
    return {"status": "failed", "exit_code": code, "message": message, "trace": traceback.format_exc()}


def _write(path: Path, record: Record) -> None:
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
        write_atomic(path, lambda temporary: temporary.write_text(yaml.safe_dump(redact(tree)), encoding="utf-8"))


def run(job: Job) -> int:
    """Check every cell, run them all, and say what came of each; the exit status of the whole.

    Raises:
        ConfigError: when a cell cannot be meant; then nothing has been started.
    """
    if ranks.world() > 1:
        raise ConfigError("a sweep under torchrun has no meaning; say rela train -m runtime.devices=N for several GPUs")
    composer = Composer(job.line)
    cells, first = composer.plan()
    composer.say_notes()
    launcher = composer.launcher()
    if first.runtime.dry_run:
        return dry_run(cells, launcher, Path(first.paths.outputs))
    folder = _new_folder(Path(first.paths.outputs))
    shares = divide(first, launcher, folder)
    words = [*_own_folder(job, folder), *settings(shares, launcher, job.line.overrides)]
    if kind_of(launcher) in ("LocalLauncher", "SlurmLauncher"):
        print(f"{len(cells)} cells; what they say stands in {os.path.relpath(folder)}/.submitit", flush=True)
    stop, trouble = 0, ""
    try:
        with signals.between(partial(tell, folder) if shares else None):
            hand_over(job.command, job.line, CellTask(job, folder, len(cells), shares), *words)
    except KeyboardInterrupt as interrupt:  # between cells: inside of one it is the cell's
        stop = getattr(interrupt, "exit_code", 130)
        if shares:
            signals.heard(signal.SIGINT, "cells that run save and leave, within a minute")
            tell(folder, signal.SIGTERM)
    except SweepStopped as stopped:
        stop = stopped.args[0]
    except Exception as error:  # the launcher's: a cell's own never get here
        trouble = f": {type(error).__name__}: {error}"
    records = [_read(folder / f"{number}.json", cell, stop, trouble) for number, cell in enumerate(cells)]
    return report(records, stop)


def dry_run(cells: Sequence[Sequence[str]], launcher: Record, outputs: Path) -> int:
    """What would be started, and on Slurm the script that says so."""
    if kind_of(launcher) == "SlurmLauncher":
        from rela_cli.slurm import script

        print(script(launcher, outputs.resolve() / "sweeps" / "DATE", len(cells)))
    for number, cell in enumerate(cells):
        print(redact(f"cell {number + 1} of {len(cells)}: {' '.join(cell)}"))
    return 0


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


def _read(path: Path, cell: Sequence[str], stop: int, trouble: str) -> Record:
    try:
        record: Record = json.loads(path.read_text())
        return record
    except (OSError, ValueError):
        status = "stopped" if stop else "failed"
        message = "the process ended without a word (killed, or out of memory)" + trouble
        return {"status": status, "exit_code": stop or 1, "message": message, "overrides": list(cell)}


def report(records: Sequence[Record], stop: int = 0) -> int:
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
    noun = "cell" if len(records) == 1 else "cells"
    print(f"{len(records)} {noun}: {counts['run']} run, {counts['found']} found, {counts['failed']} failed{unfinished}")
    return stop or max((record["exit_code"] for _, record in failed), default=0)


def print_progress(records: Sequence[Record]) -> None:
    """After a stop: which cells are done and which are not."""
    print("\nstopped; the same command goes on with what is not done")
    for number, record in enumerate(records):
        word = {"run": "done", "found": "done", "failed": "failed"}.get(record["status"], "not done")
        print(f"  {word:<9} cell {number + 1}: {' '.join(record['overrides'])}")


def _print_table(folders: Sequence[Path]) -> None:
    if not folders:
        return
    try:
        from rela_cli.report.table import print_table

        print_table(list(dict.fromkeys(folders)))
    except Exception as error:  # the runs are done; their summary must still come
        print(f"rela: no table ({type(error).__name__}: {error}); try: rela table", file=sys.stderr)
