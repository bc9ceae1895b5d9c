"""Trackers besides metrics.jsonl. None of them can fail a run: one warning, and it goes on without.

Keys come from the environment, never from the config, and what looks like a secret is left out of what is sent.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rela_cli.config.reading import to_tree
from rela_cli.config.schema import Config
from rela_cli.store.files import write_atomic
from rela_cli.store.notices import warn
from rela_cli.store.secrets import redact
from rela_cli.terminal import printable, readable

Forward = Callable[[dict[str, Any]], None]
INIT_SECONDS = 10  # how long wandb may take to answer before it goes offline
FINISH_SECONDS = 30.0  # how long a run that is done waits for it


@contextmanager
def open_logger(config: Config, folder: Path) -> Iterator[Forward]:
    """What takes a record of metrics, until the training is over."""
    run = start_wandb(config, folder) if config.logger.name == "wandb" else None
    if run is None:
        yield lambda record: None
        return
    tracker = Tracker(run)
    try:
        yield tracker.put
    finally:
        tracker.close()


class Tracker:
    """Hands records on from a thread of its own: what fails, or hangs, over there holds nobody up here."""

    def __init__(self, run: Any) -> None:
        self.run, self.records = run, SimpleQueue[dict[str, Any] | None]()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def put(self, record: dict[str, Any]) -> None:
        """Returns at once."""
        self.records.put(record)

    def work(self) -> None:
        """All records, then the end; the first failure ends it with the one warning there is."""
        try:
            while (record := self.records.get()) is not None:
                self.run.log(record, step=record["step"])
            self.run.finish()
        except Exception as error:
            leave_quietly()
            warn(f"wandb stopped working ({error}); metrics.jsonl has everything")

    def close(self) -> None:
        """Let it finish, but not for ever."""
        self.records.put(None)
        self.thread.join(FINISH_SECONDS)
        if self.thread.is_alive():
            warn(f"wandb did not finish within {FINISH_SECONDS:g} s; metrics.jsonl has everything")


def leave_quietly() -> None:
    """A wandb that is gone would say so once more, with a traceback, when the process ends."""
    before = sys.unraisablehook

    def hook(report: Any) -> None:
        if not str(getattr(report.object, "__module__", "")).startswith("wandb"):
            before(report)

    sys.unraisablehook = hook


def start_wandb(config: Config, folder: Path) -> Any:
    """A wandb run, online if asked for and possible, else offline in the run's folder; None when there can be none."""
    os.environ.setdefault("WANDB_SILENT", "true")
    modes = ["online", "offline"] if config.logger.mode == "online" else ["offline"]
    for mode in modes:
        try:
            return init_wandb(config, folder, mode)
        except Exception as error:  # wandb has many ways to say no
            reason = (str(error) or type(error).__name__).splitlines()[0]
            later = f"going offline; later: wandb sync {folder}/wandb/offline-run-*"
            warn(f"wandb is not available ({reason}): {later if mode == 'online' else 'metrics.jsonl has everything'}")
    return None


def init_wandb(config: Config, folder: Path, mode: Any) -> Any:
    """wandb.init with our settings: it neither listens to our output nor to our imports."""
    import wandb

    with redacted_arguments():
        run = wandb.init(
            mode=mode,
            project=config.logger.project,
            entity=config.logger.entity,
            dir=str(folder),
            name=printable(folder.name),
            id=tracked_as(folder),
            resume="allow",
            config=readable(redact(to_tree(config))),  # it takes no bytes that are no characters
            settings=wandb.Settings(init_timeout=INIT_SECONDS, console="off"),
        )
    leave_imports_alone()
    return run


def tracked_as(folder: Path) -> str:
    """The id of a run folder in wandb, drawn once, so that a run that goes on stays one curve there."""
    path = folder / "wandb.id"
    if not path.exists():
        write_atomic(path, lambda temporary: temporary.write_text(secrets.token_hex(4), encoding="utf-8"))
    return path.read_text(encoding="utf-8").strip()


@contextmanager
def redacted_arguments() -> Iterator[None]:
    """wandb sends the command line along."""
    before = sys.argv
    sys.argv = readable(redact(before))
    try:
        yield
    finally:
        sys.argv = before


def leave_imports_alone() -> None:
    """wandb reports which libraries are imported; once its process is gone, every such import of ours would fail."""
    with suppress(Exception):  # a wandb without these hooks
        from wandb.sdk.lib import import_hooks

        import_hooks.unregister_all_post_import_hooks()
