"""What a value of a config may be: ranges, names, and the types that the schema is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from rela_cli.errors import did_you_mean


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both allowed; `above` leaves `low` itself out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def complaint(self, value: float) -> str | None:
        if math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high:
            return None
        low = f"{'above' if self.above else 'at least'} {self.low:.10g}" if self.low > -math.inf else ""
        high = f"at most {self.high:.10g}" if self.high < math.inf else ""
        return "must be " + (" and ".join(filter(None, (low, high))) or "finite")


@dataclass(frozen=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]

    def complaint(self, value: str) -> str | None:
        if value in self.names:
            return None
        return f"must be one of {', '.join(self.names)}{did_you_mean(value, self.names)}"


@dataclass(frozen=True)
class FolderName:
    """Any text but none at all."""

    def complaint(self, value: str) -> str | None:
        return None if value.strip() else "must name a folder"


@dataclass(frozen=True)
class CountOrOneOf:
    """A whole number from 1 on (True is none), or a name; `wanted` says so where the names alone do not."""

    names: tuple[str, ...]
    wanted: str = ""

    def complaint(self, value: Any) -> str | None:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if is_count or value in self.names:
            return None
        return f"must be {self.wanted or 'a whole number, or ' + ' or '.join(self.names)}"


Count = Annotated[int, Range(1)]

Seed = Annotated[int, Range(0, 2**31 - 1)]

Share = Annotated[float, Range(0, 1)]

PositiveShare = Annotated[float, Range(0, 1, above=True)]

Positive = Annotated[float, Range(0, above=True)]

NonNegative = Annotated[float, Range(0)]
