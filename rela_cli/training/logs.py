"""Files that a run writes line by line while it trains: metrics and the trace of the switch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rela_cli.switch import Switch


class Metrics:
    """metrics.jsonl: one line a record, flushed at once, added to what is there."""

    def __init__(self, path: Path, forward: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.forward = path, forward

    def __enter__(self) -> Metrics:
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and hand it on to the logger."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        self.forward(record)


TRACE_COLUMNS = ("loss", "fast", "slow", "rho")  # of a trace


class Trace:
    """switch.jsonl: step, loss, fast, slow and rho of each step of phase 1, so that other rules can be tried later.

    Rows stay on the device until `flush`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0
        self.rows: list[Tensor] = []
        path.touch()

    def add(self, loss: Tensor, switch: Switch) -> None:
        """After a step: the loss that it had, and the switch as it is now."""
        self.rows.append(torch.stack((loss.double(), *switch.state[:3])))

    def flush(self) -> None:
        """Write down what has come since the last time."""
        if not self.rows:
            return
        lines = []
        for number, row in enumerate(torch.stack(self.rows).tolist(), self.written + 1):
            lines.append(json.dumps({"step": number, **dict(zip(TRACE_COLUMNS, row, strict=True))}) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.written += len(self.rows)
        self.rows = []
