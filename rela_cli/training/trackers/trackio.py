"""Trackio: a local database, or a Space or server that its own environment variables name."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rela_cli.config.reading import to_tree
from rela_cli.config.schema import Config
from rela_cli.store.secrets import redact
from rela_cli.terminal import printable, readable


class Trackio:
    """One run in the project `logger.project`. A resumed run goes on under its name."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.project, self.name = config.logger.project, printable(folder.name)
        self.config = readable(redact(to_tree(config)))
        self.run: Any = None

    def log(self, record: dict[str, Any]) -> None:
        """Send a record of metrics."""
        if self.run is None:
            self.run = self.open()
        self.run.log(record, step=record["step"])

    def open(self) -> Any:
        """trackio.init; what it prints goes to stderr, because stdout carries our results."""
        import trackio

        with redirect_stdout(sys.stderr):
            return trackio.init(
                project=self.project,
                name=self.name,
                config=self.config,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def finish(self, succeeded: bool) -> None:
        """Wait until everything is stored."""
        if self.run is not None:
            with redirect_stdout(sys.stderr):
                self.run.finish()
