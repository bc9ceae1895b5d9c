"""Trackers besides metrics.jsonl. None of them can fail a run: one warning, then it goes on without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rela_cli.config import Config, to_tree

Forward = Callable[[dict[str, Any]], None]


def open_logger(config: Config, folder: Path) -> tuple[Forward, Callable[[], None]]:
    """What takes a record of metrics, and what closes it."""
    if config.logger.name != "wandb":
        return lambda record: None, lambda: None
    try:
        run = start_wandb(config, folder)
    except Exception as error:  # wandb has many ways to say no
        warn(f"wandb is not available ({error}); metrics.jsonl has everything")
        return lambda record: None, lambda: None
    return guarded(lambda record: run.log({k: v for k, v in record.items() if v is not None}, step=record.get("step"))), guarded_close(run)


def start_wandb(config: Config, folder: Path) -> Any:
    """A wandb run, online if asked for and possible, else offline in the run folder."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    common = {"project": config.logger.project, "entity": config.logger.entity, "dir": str(folder), "name": folder.name}
    common |= {"config": to_tree(config)}
    if config.logger.mode == "online":
        try:
            return wandb.init(mode="online", settings=wandb.Settings(init_timeout=10), **common)
        except Exception as error:
            warn(f"wandb goes offline ({str(error).splitlines()[0]}); later: wandb sync {folder}/wandb/offline-run-*")
    return wandb.init(mode="offline", **common)


def guarded(call: Forward) -> Forward:
    """`call`, until it fails for the first time."""
    alive = [True]

    def forward(record: dict[str, Any]) -> None:
        if alive[0]:
            try:
                call(record)
            except Exception as error:
                alive[0] = False
                warn(f"wandb stopped working ({error}); metrics.jsonl goes on")

    return forward


def guarded_close(run: Any) -> Callable[[], None]:
    """Finish the wandb run, whatever state it is in."""
    close = guarded(lambda record: run.finish(quiet=True))
    return lambda: close({})


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"rela: {message}", file=sys.stderr, flush=True)
