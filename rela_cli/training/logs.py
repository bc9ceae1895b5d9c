"""Files that a run writes line by line while it trains: metrics and the trace of the switch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    """switch.jsonl: step, loss, fast, slow and rho of each step of phase 1, so that other rules can be tried later."""

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0
        self.rows: list[Tensor] = []
        path.touch()

    def add(self, losses: Tensor, averages: Tensor) -> None:
        """What the host has read of some steps: their losses (n,), and the switch's (n, 3) after each of them."""
        self.rows.append(torch.cat((losses.double()[:, None], averages), dim=1))

    def flush(self) -> None:
        """Write down what has come since the last time."""
        if not self.rows:
            return
        lines = []
        for number, row in enumerate(torch.cat(self.rows).tolist(), self.written + 1):
            lines.append(json.dumps({"step": number, **dict(zip(TRACE_COLUMNS, row, strict=True))}) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.written += len(lines)
        self.rows = []
