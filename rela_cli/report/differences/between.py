"""One column minus another at the same seed: two priors, two variants, a prior and its learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.report.differences.paired import Difference, paired, paired_by_seed, paired_grid
from rela_cli.report.differences.records import difference_fields
from rela_cli.report.grids.cells import SEEN, Grid
from rela_cli.report.results.comparison import (
    Column,
    Protocol,
    Result,
    Row,
    by_seed,
    columns_of,
    no_seed_moves,
    protocols_legend,
    row_labels,
    rows_to_compare,
    saw_labels,
)


def checked_columns(results: Sequence[Result], one: str, other: str) -> tuple[str, str]:
    """The names of two columns, as the tables have them.

    Raises:
        ConfigError: there is no such column, or a prior has several.
    """
    names = {column.name for column in columns_of(results)}
    for name in (one, other):
        if name not in names:
            alike = sorted(known for known in names if known.startswith(f"{name} ") and "prior alone" not in known)
            several = f": there are several, {'; '.join(alike)}" if alike else did_you_mean(name, names)
            known = "" if alike else f" (columns: {', '.join(sorted(names))})"
            raise ConfigError(f"--between={name} is no column here{several}{known}")
    return one, other


def difference(
    results: Sequence[Result], row: Row, one: Column, other: Column, protocol: Protocol
) -> Difference | None:
    """`one` minus `other` over the seeds that both have; a prior alone that no seed moves goes with every seed."""
    a, b = (by_seed(results, row, column, protocol) for column in (one, other))
    if a and b and all(no_seed_moves(column, values) for column, values in ((one, a), (other, b))):
        return paired({0: min(a.values()) - min(b.values())})  # one measurement each: no interval
    if a and b and no_seed_moves(one, a):
        a = dict.fromkeys(b, min(a.values()))
    if a and b and no_seed_moves(other, b):
        b = dict.fromkeys(a, min(b.values()))
    return paired_by_seed(a, b)


def between_grids(
    results: Sequence[Result], protocols: Sequence[Protocol], one: str, other: str, margin: float | None = None
) -> list[Grid]:
    """The differences of two columns in every row that has both; no grid where none has."""
    columns = {column.name: column for column in columns_of(results)}
    if one not in columns or other not in columns:
        return []
    lines, found = [], []
    for protocol in protocols:
        for row in rows_to_compare(results):
            if (value := difference(results, row, columns[one], columns[other], protocol)) is not None:
                lines.append((row, protocol))
                found.append((value,))
    if not lines:
        return []
    a, b = (name + SEEN * any(saw_labels(results, row, columns[name]) for row, _ in lines) for name in (one, other))
    title, heads, labels = row_labels(lines, f"{a} minus {b}, points")
    seen = (SEEN, "its prior was trained with the labels of this very dataset")
    legend = (*protocols_legend(p for _, p in lines), *[seen] * (SEEN in a + b))
    return [paired_grid(title, heads, ("difference",), labels, found, legend, margin)]


def between_record(
    results: Sequence[Result], row: Row, column: Column, protocol: Protocol, one: str, other: str, margin: float | None
) -> dict[str, Any]:
    """The difference `one` - `other` in full precision, in the record of column `one`; empty fields elsewhere."""
    columns = {known.name: known for known in columns_of(results)}
    found = difference(results, row, column, columns[other], protocol) if column.name == one else None
    return difference_fields(f"{one}_minus_{other}", found, margin)
