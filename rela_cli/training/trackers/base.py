"""What a tracker has to do."""

from __future__ import annotations

from typing import Any, Protocol

Record = dict[str, Any]


class Service(Protocol):
    """One run in a tracker's own library."""

    def log(self, record: Record) -> None:
        """Send a record of metrics; it has the key `step`."""

    def finish(self, succeeded: bool) -> None:
        """Send what is left, and mark the run as finished or failed."""


def numeric_values(record: Record) -> dict[str, float]:
    """The numbers of a record, without `step`: trackers that draw curves take nothing else."""
    known = {name: value for name, value in record.items() if name != "step"}
    return {name: float(value) for name, value in known.items() if isinstance(value, int | float)}
