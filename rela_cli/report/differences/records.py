"""Differences of paired runs as records of csv and json: in full precision and flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    results = results if column.kind == "prior" else []  # in which nothing is found
    star = difference_at_budget(results, row, column.settings, protocol, 1.0)
    same = difference_at_budget(results, row, column.settings, protocol, row.budget)
    live = minus_live(results, row, column, protocol, axis)
    record = difference_fields("minus_plain", same, margin) | difference_fields("minus_star", star, margin)
    record |= difference_fields("minus_live", None if isinstance(live, str) else live, margin)
    if axis is None:
        return record
    equal = at_equal_cost(results, row, column.settings, protocol, axis)
    found = reach(results, row, column.settings, protocol, axis)
    return {
        **record,
        "axis": axis,
        **difference_fields("equal_cost", None if isinstance(equal, str) else equal, margin),
        "equal_cost_outside": equal if isinstance(equal, str) else None,
        "cost_share_of_star": cost_share(results, row, column.settings, axis),
        "reach_share": found.share if found else None,
        "reach": found.how if found else None,
    }


def difference_fields(name: str, found: Difference | None, margin: float | None = None) -> dict[str, Any]:
    """A difference as fields of a record; with a margin in points also the larger p of the two one-sided tests."""
    values = (found.mean, found.low, found.high, len(found.seeds)) if found else (None, None, None, 0)
    fields = dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), values, strict=True))
    if margin is None:
        return fields
    return fields | {f"{name}_within_p": found.larger_p(margin / 100) if found else None}
