"""Differences of paired runs as records of csv and json: in full precision and flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rela_cli.report.differences.equivalence import larger_p
from rela_cli.report.differences.paired import (
    Difference,
    at_equal_cost,
    cost_share,
    difference_at_budget,
    minus_live,
    reach,
)
from rela_cli.report.results.comparison import Column, Protocol, Result, Row


def comparison_record(
    results: Sequence[Result], row: Row, column: Column, protocol: Protocol, axis: str | None, margin: float | None
) -> dict[str, Any]:
    """A cell's comparisons as flat fields in full precision; the fields are empty for a cell without a prior."""
    is_prior = column.kind == "prior"
    star = difference_at_budget(results, row, column.settings, protocol, 1.0) if is_prior else None
    same = difference_at_budget(results, row, column.settings, protocol, row.budget) if is_prior else None
    record = difference_fields("minus_plain", same, margin) | difference_fields("minus_star", star, margin)
    live = minus_live(results, row, column, protocol, axis) if is_prior else None
    record |= difference_fields("minus_live", live if isinstance(live, Difference) else None, margin)
    if axis is None:
        return record
    equal = at_equal_cost(results, row, column.settings, protocol, axis) if is_prior else None
    found = reach(results, row, column.settings, protocol, axis) if is_prior else None
    outside = equal if isinstance(equal, str) else None
    return {
        **record,
        "axis": axis,
        **difference_fields("equal_cost", None if isinstance(equal, str) else equal, margin),
        "equal_cost_outside": outside,
        "cost_share_of_star": cost_share(results, row, column.settings, axis) if is_prior else None,
        "reach_share": found.share if found else None,
        "reach": found.how if found else None,
    }


def difference_fields(name: str, found: Difference | None, margin: float | None = None) -> dict[str, Any]:
    """A difference as fields of a record; with a margin in points also the larger p of the two one-sided tests."""
    values = (found.mean, found.low, found.high, len(found.seeds)) if found else (None, None, None, 0)
    fields = dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), values, strict=True))
    if margin is None:
        return fields
    known = found is not None and found.half is not None
    p = larger_p(found.mean, found.half, len(found.seeds), margin / 100) if known else None  # type: ignore[union-attr, arg-type]
    return fields | {f"{name}_within_p": p}
