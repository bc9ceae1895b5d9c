"""Weights and Biases: online where it can be, else offline in the run's folder.

Keys come from the environment, never from the config.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rela_cli.config.reading import to_tree
from rela_cli.config.schema import Config
from rela_cli.errors import first_line
from rela_cli.store.files import write_atomic
from rela_cli.store.notices import warn
from rela_cli.store.secrets import redact
from rela_cli.terminal import printable, readable

INIT_SECONDS = 10  # how long wandb may take to answer before it goes offline


class Wandb:
    """One run there."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, record: dict[str, Any]) -> None:
        """Send a record of metrics."""
        try:
            self.run.log(record, step=record["step"])
        except Exception:
            leave_quietly()
            raise

    def finish(self, succeeded: bool) -> None:
        """Wait until everything is sent; a run that did not succeed is shown as failed."""
        try:
            self.run.finish(exit_code=0 if succeeded else 1)
        except Exception:
            leave_quietly()
            raise


def open_wandb(config: Config, folder: Path) -> Wandb | None:
    """A wandb run, online if asked for and possible, else offline in the run's folder; None if there can be none."""
    os.environ.setdefault("WANDB_SILENT", "true")
    modes = ["online", "offline"] if config.logger.mode == "online" else ["offline"]
    for mode in modes:
        try:
            return Wandb(init_wandb(config, folder, mode))
        except Exception as error:  # wandb has many ways to say no
            reason = first_line(error)
            later = f"going offline; later: wandb sync {folder}/wandb/offline-run-*"
            warn(f"wandb is not available ({reason}): {later if mode == 'online' else 'metrics.jsonl has everything'}")
    return None


def leave_quietly() -> None:
    """A wandb that is gone would say so once more, with a traceback, when the process ends."""
    before = sys.unraisablehook

    def hook(report: Any) -> None:
        if not str(getattr(report.object, "__module__", "")).startswith("wandb"):
            before(report)

    sys.unraisablehook = hook


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
    """Hide secrets in the command line while wandb reads it."""
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
