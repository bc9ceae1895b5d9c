"""Trackers besides metrics.jsonl. None of them can fail a run: one warning, and it goes on without.

Keys come from the environment, never from the config, and what looks like a secret is left out of what is sent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rela_cli.config import Config, to_tree
from rela_cli.redact import redact

Forward = Callable[[dict[str, Any]], None]
INIT_SECONDS = 10  # how long wandb may take to answer before it goes offline


@contextmanager
def open_logger(config: Config, folder: Path) -> Iterator[Forward]:
    """What takes a record of metrics, until the training is over."""
    run = start_wandb(config, folder) if config.logger.name == "wandb" else None
    if run is None:
        yield lambda record: None
        return
    alive = [True]
    try:
        yield lambda record: guard(lambda: run.log(record, step=record["step"]), alive)
    finally:
        guard(run.finish, alive)


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
    """wandb.init with our settings."""
    import wandb

    return wandb.init(
        mode=mode,
        project=config.logger.project,
        entity=config.logger.entity,
        dir=str(folder),
        name=folder.name,
        config=redact(to_tree(config)),
        settings=wandb.Settings(init_timeout=INIT_SECONDS),
    )


def guard(call: Callable[[], Any], alive: list[bool]) -> None:
    """`call`, until one fails."""
    if alive[0]:
        try:
            call()
        except Exception as error:
            alive[0] = False
            warn(f"wandb stopped working ({error}); metrics.jsonl goes on")


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"rela: {message}", file=sys.stderr, flush=True)
