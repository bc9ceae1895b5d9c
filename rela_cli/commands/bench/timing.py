"""Clocks, and contestants that take turns: whatever slows the machine down for a while slows all of them down."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds of processor time, that of ended child processes included, and seconds on the wall."""

    cpu: float
    wall: float

    def over(self, share: float) -> Timing:
        """What the whole would have taken, where this was a `share` of it."""
        return Timing(self.cpu / share, self.wall / share)


@dataclass(frozen=True)
class Spread:
    """Median, least and most of a number that each round gives."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Contestant:
    """One way to do the work. `share` is how much of the work one call does; `warm_up` stands in for a first call."""

    name: str
    work: Callable[[], object]
    share: float = 1.0
    warm_up: Callable[[], object] | None = None
    is_ours: bool = False


@dataclass
class Timings:
    """What a contestant took, round by round, and what its last call gave."""

    warm_up: Timing
    rounds: list[Timing] = field(default_factory=list)
    result: object = None


def clock(work: Callable[[], T]) -> tuple[Timing, T]:
    """One call, timed."""
    wall, cpu = time.perf_counter(), processor_seconds()
    result = work()
    return Timing(processor_seconds() - cpu, time.perf_counter() - wall), result


def processor_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def race(
    contestants: Sequence[Contestant], rounds: int, drop: Callable[[Contestant, Exception], None]
) -> dict[str, Timings]:
    """Warm all up, then let them take turns; each round begins with another one.

    A peer that breaks in its warm-up is given to `drop` and left out; ours breaks the run.
    """
    records: dict[str, Timings] = {}
    for contestant in contestants:
        try:
            records[contestant.name] = Timings(clock(contestant.warm_up or contestant.work)[0])
        except Exception as error:
            if contestant.is_ours:
                raise
            drop(contestant, error)
    left = [contestant for contestant in contestants if contestant.name in records]
    for number in range(rounds):
        for contestant in rotated(left, number):
            took, records[contestant.name].result = clock(contestant.work)
            records[contestant.name].rounds.append(took.over(contestant.share))
    return records


def rotated(contestants: Sequence[T], number: int) -> list[T]:
    """The contestants in their order, beginning with the `number`-th."""
    first = number % max(1, len(contestants))
    return [*contestants[first:], *contestants[:first]]


def ratios(above: Timings, below: Timings, by: str) -> Spread:
    """above / below, round by round; `by` is cpu or wall."""
    pairs = zip(above.rounds, below.rounds, strict=True)
    return spread(getattr(a, by) / max(getattr(b, by), 1e-9) for a, b in pairs)


def seconds(record: Timings, by: str) -> Spread:
    """What a round took."""
    return spread(getattr(timing, by) for timing in record.rounds)


def spread(values: Iterable[float]) -> Spread:
    """Median, least and most."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))
