"""What the runs of an outputs folder look like now. A file is read again only when it has changed. No torch needed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rela_cli.pipeline.screen import comparison_words, cost
from rela_cli.report.results.run_files import is_number, read_jsonl
from rela_cli.store.files import Facts, read_json
from rela_cli.store.locks import RunLock
from rela_cli.store.outputs import elsewhere, run_folders, top1_by_protocol
from rela_cli.store.secrets import redact

WATCHED_FILES = ("manifest.json", "metrics.jsonl", "result.json")
AT_WORK = ("running", "trained")  # what the manifest of a run says that somebody should be at
CURVE_POINTS = 240  # of a curve that is sent to the page; longer ones are thinned
NEWEST = ("loss", "rho", "lr", "images_per_second", "data_wait", "knn", "linear", "effective_rank", "phase", "step")
STATE_ORDER = {
    "running": 0,
    "failed": 1,
    "damaged": 1,
    "killed": 2,
    "stopped": 2,
    "finished": 3,
}  # the order on the page


@dataclass(frozen=True)
class Seen:
    """What was read of a run, and the files' times and sizes then."""

    stamp: tuple[tuple[int, int], ...]
    facts: Facts
    curve: list[list[Any]]


class Watcher:
    """Follows one outputs folder."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.seen: dict[Path, Seen] = {}
        self.lock = threading.Lock()  # requests come in threads

    def state(self) -> Facts:
        """All runs as JSON: those at work first, then failed ones, then the newest."""
        with self.lock:
            folders = [*run_folders(self.outputs), *elsewhere(self.outputs)] if self.outputs.is_dir() else []
            self.seen = {folder: self.look(folder) for folder in folders}
            runs = [{**seen.facts, "status": status_of(folder, seen.facts)} for folder, seen in self.seen.items()]
        runs.sort(key=lambda run: str(run["created"]), reverse=True)
        runs.sort(key=lambda run: STATE_ORDER.get(run["status"], 2))
        return {"outputs": str(self.outputs.absolute()), "now": time.time(), "runs": runs}

    def curve(self, name: str) -> list[list[Any]] | None:
        """(step, loss, phase) of a run, at most CURVE_POINTS of them; None for a name that is not there."""
        with self.lock:
            return next((seen.curve for seen in self.seen.values() if seen.facts["name"] == name), None)

    def finished(self) -> tuple[Any, ...]:
        """Changes whenever the table could."""
        with self.lock:
            return tuple((str(folder), seen.stamp[-1]) for folder, seen in self.seen.items() if seen.stamp[-1][1])

    def look(self, folder: Path) -> Seen:
        """A run, read again if one of its files has changed."""
        stamp = tuple(stamp_of(folder / name) for name in WATCHED_FILES)
        before = self.seen.get(folder)
        return before if before and before.stamp == stamp else read_run(folder, stamp)


def stamp_of(path: Path) -> tuple[int, int]:
    """Time and size of a file; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def read_run(folder: Path, stamp: tuple[tuple[int, int], ...]) -> Seen:
    """What there is to say of a run. Damaged or half-written files say nothing."""
    manifest, result = (read_json(folder / name) or {} for name in ("manifest.json", "result.json"))
    records = read_jsonl(folder / "metrics.jsonl") if stamp[1][1] else []
    facts = {
        "name": folder.name if folder.parent.name == "runs" else str(folder),
        "folder": str(folder),
        "said": str(manifest.get("status", "damaged")),
        "created": str(manifest.get("created", "")),
        "began": seconds_of(manifest.get("created")),
        "command": redact(str(manifest.get("command", ""))),
        "reason": redact(str(manifest.get("reason") or "")),
        **progress(folder, records, result),
        **newest(records),
        "top1": top1_by_protocol(result),
        "beside": {key: comparison_words(result, key) for key in top1_by_protocol(result)},
        "cost": cost(result),
    }
    return Seen(stamp, facts, thinned(loss_rows(records)))


def progress(folder: Path, records: Sequence[Facts], result: Facts) -> Facts:
    """Epochs done and to do, and the step at which the learner left its targets."""
    done = records[-1].get("epoch") if records else 0
    epoch = done if is_number(done) else 0
    return {"epoch": epoch, "epochs": epochs_of(folder), "switch_step": result.get("switch_step")}


def epochs_of(folder: Path) -> int | None:
    """`epochs:` of config.yaml. Reading all of its YAML would take seconds for a thousand runs."""
    try:
        found = re.search(r"^epochs: (\d+)", (folder / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return int(found.group(1)) if found else None


def newest(records: Sequence[Facts]) -> Facts:
    """The last value of each number; kNN and rank are not in every record."""
    found: Facts = {}
    for record in records:
        found |= {key: record[key] for key in NEWEST if is_number(record.get(key))}
    if "rho" in found and records[-1].get("rho") is None:
        del found["rho"]  # of the first phase only
    return found


def loss_rows(records: Sequence[Facts]) -> list[list[Any]]:
    """[step, loss, phase] of each record that has them."""
    rows = [[record.get("step"), record.get("loss"), record.get("phase")] for record in records]
    return [row for row in rows if is_number(row[0]) and is_number(row[1])]


def thinned(rows: list[list[Any]]) -> list[list[Any]]:
    """At most CURVE_POINTS rows, evenly, with the first and the last."""
    if len(rows) <= CURVE_POINTS:
        return rows
    return [rows[round(i * (len(rows) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]


def status_of(folder: Path, facts: Facts) -> str:
    """running, finished, stopped, failed, damaged, or killed: its process is gone without a word.

    Only the lock of a run that should be at work is tried: a thousand finished ones need none.
    """
    said = str(facts["said"])
    if said not in AT_WORK:
        return said
    return "killed" if RunLock(folder).is_free() else "running"


def seconds_of(created: Any) -> float | None:
    """A manifest's time as seconds since 1970."""
    try:
        return datetime.strptime(str(created), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return None
