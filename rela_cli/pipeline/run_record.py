"""What is written into a run's folder about the run as a whole: manifest.json, config.yaml, why it failed.

A run that resume=force takes over keeps its manifest until the first checkpoint under the new settings.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml

from rela_cli.distributed import ranks
from rela_cli.errors import NonFiniteError, RelaError
from rela_cli.pipeline.result import run_label_facts
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.screen import say
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, fingerprint, keep_damaged, provenance, write_atomic, write_json, write_text
from rela_cli.store.locks import RunLock
from rela_cli.store.notices import warn
from rela_cli.store.outputs import ELSEWHERE
from rela_cli.store.secrets import redact
from rela_cli.weights import run_folder, seen

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML was built with it


class RunRecord:
    """The record of one run. Only rank 0 writes; on other ranks every method does nothing."""

    def __init__(self, run: Run, command: str) -> None:
        self.run, self.command = run, command
        self.held_back: Facts | None = None  # with resume=force: facts that wait for the first checkpoint

    def begin(self) -> None:
        """Say that the run is at work. The caller holds the run's lock."""
        if not ranks.is_first():
            return
        self.held_back = self.forced_resume()
        self.write("running", reason=None, non_finite=None)
        (self.run.folder / "traceback.txt").unlink(missing_ok=True)

    def write(self, status: str, **facts: Any) -> None:
        """Bring the manifest up to date; facts that are None are taken out of it."""
        if not ranks.is_first():
            return
        if self.held_back is not None and status == "running":
            self.held_back |= facts
            return
        self.take_over()
        write_manifest(self.run, status, self.command, **facts)

    def take_over(self) -> None:
        """Write down what was held back: from the first checkpoint under these settings the folder is this run's."""
        if self.held_back is not None:
            facts, self.held_back = self.held_back, None
            write_manifest(self.run, "running", self.command, **facts)

    def forced_resume(self) -> Facts | None:
        """What the manifest has to say where resume=force goes on with another run; None if the run is this one."""
        changed = self.run.differences()
        if not changed:
            return None
        entry = {"when": provenance()["created"], "changed": {key: list(pair) for key, pair in changed.items()}}
        return {"forced": [*self.run.manifest.get("forced", []), entry]}

    def write_failure(self, error: BaseException) -> None:
        """Status and reason into the manifest, the traceback into a file of its own."""
        if not ranks.is_first():
            return
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            (self.run.folder / "traceback.txt").write_text(redact(traceback.format_exc()), encoding="utf-8")
            if self.held_back is not None:
                warn(f"{self.run.folder} stays the run that it was: resume=force ended before its first checkpoint")
                return
            facts = {"non_finite": error.facts} if isinstance(error, NonFiniteError) else {}
            write_manifest(self.run, status, self.command, reason=str(error) or type(error).__name__, **facts)
        except Exception as second:  # a full disk, say, must not hide the first error
            error.add_note(f"and then: {second}") if hasattr(error, "add_note") else None

    def mark_finished(self) -> None:
        """Complete the record of a run that has nothing to do.

        The prior's card may have changed since. And a process killed right after it wrote the run's last file had no
        time to write that the run is finished.
        """
        if not ranks.is_first():
            return
        self.correct_labels()
        if self.run.manifest.get("status") == "finished":
            return
        try:
            with RunLock(self.run.folder, self.command), disk_errors(self.run.folder):
                self.write("finished", reason=None)
                point_latest(self.run.folder)
        except RelaError as error:  # another process is at it, or the folder is read-only: what matters is there
            warn(str(error))

    def correct_labels(self) -> None:
        """Write into result.json which labels the prior's card says today that it has seen; no number changes."""
        result = self.run.result
        if not result or seen.is_right(result, self.run.config.prior, self.run.dataset):
            return
        facts = run_label_facts(self.run)
        try:
            with RunLock(self.run.folder, self.command), disk_errors(self.run.folder):
                write_json(self.run.folder / "result.json", {**result, **facts})
                self.write("finished")  # config.yaml holds the card
        except RelaError as error:
            warn(f"the labels that the prior has seen could not be corrected in {self.run.folder}: {error}")
            return
        words = ", ".join(facts["prior_labels_seen"]) or ("unknown" if facts["labels_unknown"] else "none")
        say(f"  corrected result.json: labels that the prior has seen: {words}")


def write_manifest(run: Run, status: str, command: str, **facts: Any) -> None:
    """Bring manifest.json and config.yaml up to date."""
    from rela_cli.machine.device import versions

    command = command or " ".join(sys.argv)
    register_elsewhere(run)
    keep_damaged(run.folder / "manifest.json")
    fresh: Facts = {"hash": run.hash, "status": status, "command": command, "inputs": run.inputs}
    fresh |= {"members": run.member_inputs or None}  # an ensemble's
    manifest = {**run.manifest, **fresh, "versions": versions(), **provenance(), **facts}
    kept = {key: value for key, value in manifest.items() if value is not None}  # None takes a key out
    text = yaml.safe_dump(redact(run.tree), sort_keys=False)
    kept["config_hash"] = run_folder.config_hash(yaml.load(text, SAFE_LOADER))
    write_text(run.folder / "config.yaml", text)
    write_json(run.folder / "manifest.json", kept)


def register_elsewhere(run: Run) -> None:
    """Register a run kept outside outputs/runs, so that `rela clean` keeps the cache entries it needs."""
    folder = str(run.folder.resolve())
    path = run.outputs / "runs" / ELSEWHERE / f"{fingerprint({'folder': folder})}.txt"
    if run.config.paths.run and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda temporary: temporary.write_bytes(os.fsencode(folder)))


def set_aside(run: Run) -> Path | None:
    """Rename a run's folder to *.old-N, if there is a run in it; the new name.

    Raises:
        RelaError: a process is at work in it.
    """
    folder = run.folder.resolve()
    if not (folder / "manifest.json").exists():
        return None
    numbers = (number for number in itertools.count(1) if not Path(f"{folder}.old-{number}").exists())
    aside = Path(f"{folder}.old-{next(numbers)}")
    with RunLock(folder):
        os.replace(folder, aside)
        folder.mkdir()
    return aside


def point_latest(folder: Path) -> None:
    """`latest` beside the runs points to the newest finished one; a convenience, so it never fails a run."""
    link = folder.parent / "latest"
    try:
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name)
    except OSError:
        pass
