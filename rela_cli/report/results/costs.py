"""What runs cost: time, operations and memory, stage by stage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rela_cli.report.grids.cells import MISSING
from rela_cli.report.results.comparison import Result
from rela_cli.store.versions import STAGES

MAKING = STAGES[:3]  # the stages that make a backbone; the probe judges it
ACCOUNT = (*MAKING, "total", "probe")
COUNT_KEYS = ("samples_seen", "steps", "switch_step", "peak_memory_bytes")
COST_KEYS = (*(f"{kind}_{head}" for kind in ("seconds", "flops") for head in ACCOUNT), *COUNT_KEYS, "device")


@dataclass(frozen=True)
class Account:
    """The mean account of the finished runs of a cell; None where it is not known."""

    seconds: dict[str, float | None]
    flops: dict[str, float | None]
    samples_seen: float | None
    steps: float | None
    switch_step: float | None
    peak_memory_bytes: float | None
    device: str

    @property
    def record(self) -> dict[str, Any]:
        """Flat, in full precision, with COST_KEYS as its keys."""
        staged = [part[stage] for part in (self.seconds, self.flops) for stage in ACCOUNT]
        return dict(zip(COST_KEYS, [*staged, *(getattr(self, key) for key in COUNT_KEYS), self.device], strict=True))


def account_of(results: Iterable[Result]) -> Account | None:
    """The account of runs that differ in their seed only; None when none of them is finished."""
    raws = [result.raw for result in results if result.finished]
    if not raws:
        return None
    means = {key: _mean(raw.get(key) for raw in raws) for key in COUNT_KEYS}
    devices = sorted({str(raw.get("device") or MISSING) for raw in raws})
    return Account(_staged(raws, "seconds"), _staged(raws, "flops"), **means, device=", ".join(devices))


def _staged(raws: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float | None]:
    """Mean by stage, with `total` for all that makes a backbone: the probe judges it, it does not make it."""
    staged = {stage: _mean((raw.get(kind) or {}).get(stage) for raw in raws) for stage in STAGES}
    known = [staged[stage] for stage in MAKING if staged[stage] is not None]
    return staged | {"total": math.fsum(value for value in known if value) if known else None}


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in values if isinstance(value, int | float)]
    return statistics.fmean(known) if known else None
