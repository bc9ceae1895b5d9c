"""TensorBoard: event files in the run's folder. `tensorboard --logdir outputs/runs` shows all runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.config.reading import to_tree
from rela_cli.config.schema import Config
from rela_cli.store.secrets import redact
from rela_cli.training.trackers.base import numeric_values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tensorboard:
    """One run: RUN/tensorboard/events.out.tfevents.*"""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.config = json.dumps(redact(to_tree(config)), indent=2, default=str)
        self.writer: SummaryWriter | None = None

    def log(self, record: dict[str, Any]) -> None:
        """One point a number. A run that was resumed hides the points that an interrupted part wrote beyond it."""
        if self.writer is None:
            self.writer = self.open(record["step"])
        for name, value in numeric_values(record).items():
            self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def open(self, step: int) -> SummaryWriter:
        """The event file, with the config as its text."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.folder), purge_step=step)  # type: ignore[no-untyped-call]
        indented = "".join(f"    {line}\n" for line in self.config.splitlines())  # Markdown's code block
        writer.add_text("config", indented, step)  # type: ignore[no-untyped-call]
        return writer

    def finish(self, succeeded: bool) -> None:
        """Close the file; TensorBoard knows no failed runs."""
        if self.writer is not None:
            self.writer.close()  # type: ignore[no-untyped-call]
