"""The table of a project: what ReLA buys at a budget, for every protocol, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rela_cli.errors import RelaError
from rela_cli.report.differences.between import between_grids, between_record
from rela_cli.report.differences.paired import comparison_grids
from rela_cli.report.differences.records import comparison_record
from rela_cli.report.grids import formats
from rela_cli.report.grids.cells import ABOVE, BEST, MISSING, SEEN, UNKNOWN, Cell, Grid, or_missing
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import (
    Column,
    Protocol,
    Result,
    Row,
    Score,
    best_and_above,
    by_dataset,
    columns_of,
    label_mark,
    protocols_legend,
    protocols_of,
    results_in,
    results_of,
    row_labels,
    rows_of,
    rows_to_compare,
    saw_labels,
    score,
    seeds_of,
    without_constants,
)
from rela_cli.report.results.costs import ACCOUNT, COST_KEYS, Account, account_of
from rela_cli.report.results.settings import NAMED_PARTS
from rela_cli.terminal import as_duration, as_si, plural

STAR_LEGEND = ("plain*", "plain on everything (budget 1), all else equal")

MARK_LEGEND = ((BEST, "best trained at its budget"), (ABOVE, "better than plain*"))

MISSING_LEGEND = (MISSING, "no result")

UNKNOWN_LEGEND = (UNKNOWN, "nobody says which labels its prior was trained with: prior.card.labels_seen=[...] says it")

SEEN_LEGEND = (SEEN, "its prior was trained with the labels of this very dataset, so it is never the best")

ONE_SEED = ("n", "1 seed in every cell")

SIZE_HEADS = ("samples\nseen", "steps", "switch\nat step", "peak\nmemory")

TOTAL_LEGEND = ("total", "extract + transport + train; the prior pass counts also when it came from the cache")

# ---------------------------------------------------------------------------------------------------- grids


def score_grids(results: Sequence[Result], protocols: Sequence[Protocol], every: bool = False) -> list[Grid]:
    """A table for each data set; where one with all protocols is too wide for a screen, the first of them.

    every: then one for each of them.
    """
    found = []
    for some in by_dataset(results):
        here = [protocol for protocol in protocols if protocol in protocols_of(some)]
        if here:
            parts = tuple(score_grid(some, [protocol]) for protocol in here) if len(here) > 1 else ()
            rest = "" if every else other_protocols(here[1:])
            found.append(replace(score_grid(some, here), parts=parts, rest=rest))
    return found


def other_protocols(protocols: Sequence[Protocol]) -> str:
    """How to see what a narrow screen leaves out."""
    names = list(dict.fromkeys(protocol.name for protocol in protocols))
    return f"also measured: {', '.join(names)}; --protocol=all shows them too" if names else ""


def score_grid(results: Sequence[Result], protocols: Sequence[Protocol]) -> Grid:
    """The table of some protocols: a row for each setting, protocol and budget."""
    columns = columns_of(results)
    rows = [(row, protocol) for protocol in protocols for row in rows_to_compare(results)]
    title, heads, labels = row_labels(rows, "top-1 %")
    scores_of = [[score(results, row, column, protocol) for column in columns] for row, protocol in rows]
    counts = seeds_of(pair for scores in scores_of for pair in zip(scores, columns, strict=True))
    cells = []
    for (row, _), scores in zip(rows, scores_of, strict=True):
        labels_seen = [label_mark(results, row, column) for column in columns]
        marks = best_and_above(scores, columns, [mark == SEEN for mark in labels_seen])
        shown = zip(scores, labels_seen, marks, strict=True)
        cells.append(tuple(_score_cell(*one, counted=len(counts - {1}) > 1) for one in shown))
    return Grid(title, heads, tuple(c.head for c in columns), labels, tuple(cells), legend(cells, counts, protocols))


def legend(
    cells: Sequence[Sequence[Cell]], counts: set[int], protocols: Sequence[Protocol]
) -> tuple[tuple[str, str], ...]:
    """What the marks and words of a score table mean."""
    every = [cell for line in cells for cell in line]
    found = [*MARK_LEGEND, *[seeds_legend(counts)] * bool(counts)]
    found += [STAR_LEGEND] * any(line[-1].text != MISSING for line in cells)
    found += [*protocols_legend(protocols), MISSING_LEGEND]
    found += [about for about in (SEEN_LEGEND, UNKNOWN_LEGEND) if any(about[0] in cell.text for cell in every)]
    return tuple(found)


def seeds_legend(counts: set[int]) -> tuple[str, str]:
    """What stands behind ±, said once for all cells where it is the same in all."""
    if counts == {1}:
        return ONE_SEED
    alone = "; without ±: 1 seed" * (1 in counts)
    if len(counts - {1}) == 1:
        return "±", f"standard deviation over {max(counts)} seeds{alone}"
    return "± (n)", f"standard deviation over n seeds{alone}"


def _score_cell(value: Score | None, labels: str, marks: tuple[bool, bool], counted: bool) -> Cell:
    if value is None:
        return Cell()
    deviation = "" if value.std is None else f"±{100 * value.std:.1f}"
    count = f" ({len(value.seeds)})" if counted and deviation else ""
    kept = tuple(mark for mark, is_there in zip((BEST, ABOVE), marks, strict=True) if is_there)
    return Cell(f"{100 * value.mean:.1f}{labels}", (deviation + count).strip(), kept)


# ----------------------------------------------------------------------------------------------------- cost


def cost_grid(results: Sequence[Result]) -> Grid:
    """One line for each trained cell: time and work by stage, and the size of the run."""
    every_label, times, work, sizes = [], [], [], []
    columns = [column for column in columns_of(results) if column.kind in ("plain", "prior")]
    for row in rows_of(results):
        for column in columns:
            account = account_of(results_in(results, row, column))
            if account is not None:
                name = "plain*" if column.kind == "plain" and row.budget == 1 else column.name
                every_label.append((*row.names, row.label, account.device, f"{row.budget:g}", name))
                times.append(_times(account))
                work.append(_work(account))
                sizes.append(_sizes(account, column.kind == "prior"))
    title, heads, labels = without_constants((*NAMED_PARTS, "settings", "device", "budget", "run"), every_label, keep=2)

    def grid(what: str, columns: tuple[str, ...], rows: Sequence[Sequence[Cell]]) -> Grid:
        legend = (*[TOTAL_LEGEND] * ("total" in columns), (MISSING, "no such stage, or not known"))
        what = " · ".join([*title, f"{what}, mean over seeds"])
        return Grid(what, heads, columns, labels, tuple(map(tuple, rows)), legend)

    parts = grid("time", ACCOUNT, times), grid("work, in FLOP", ACCOUNT, work), grid("size", SIZE_HEADS, sizes)
    whole = [[*map(_both, time, flops), *size] for time, flops, size in zip(times, work, sizes, strict=True)]
    return replace(grid("cost", (*ACCOUNT, *SIZE_HEADS), whole), parts=parts)


def _times(account: Account) -> list[Cell]:
    return [Cell(or_missing(account.seconds[stage], partial(as_duration, exact=True))) for stage in ACCOUNT]


def _work(account: Account) -> list[Cell]:
    return [Cell(or_missing(account.flops[stage], as_si)) for stage in ACCOUNT]


def _both(time: Cell, work: Cell) -> Cell:
    return Cell(time.text, "" if work.text == MISSING else f"{work.text}FLOP")


def _sizes(account: Account, has_switch: bool) -> list[Cell]:
    switch = _whole_number(account.switch_step) if account.switch_step is not None or not has_switch else "never"
    sizes = (
        _whole_number(account.samples_seen),
        _whole_number(account.steps),
        switch,
        or_missing(account.peak_memory_bytes, partial(as_si, unit="B")),
    )
    return [Cell(size) for size in sizes]


def _whole_number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


# -------------------------------------------------------------------------------------------------- records


def records(results: Sequence[Result], protocols: Sequence[Protocol], parts: Parts) -> list[dict[str, Any]]:
    """One record for each row, column and protocol, in full precision; a missing cell has n = 0."""
    columns, found = columns_of(results), []
    for protocol in protocols or [Protocol("", "")] * parts.cost:
        for row in rows_to_compare(results):
            scores = [score(results, row, column, protocol) for column in columns]
            seen = [saw_labels(results, row, column) for column in columns]
            marks = best_and_above(scores, columns, seen)
            for column, value, saw, mark in zip(columns, scores, seen, marks, strict=True):
                record = _score_record(protocol, row, column, value, *mark) | {
                    "prior_saw_labels": saw,
                    "labels_unknown": label_mark(results, row, column) == UNKNOWN,
                }
                if parts.cost:
                    record |= _cost_record(results, row, column)
                if parts.differences:
                    record |= comparison_record(results, row, column, protocol, parts.axis, parts.margin)
                for pair in parts.pairs:
                    record |= between_record(results, row, column, protocol, *pair, parts.margin)
                found.append(record)
    return found


def _score_record(
    protocol: Protocol, row: Row, column: Column, value: Score | None, best: bool, above: bool
) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "network": protocol.network,
        **dict(zip(NAMED_PARTS, row.names, strict=True)),
        "settings": row.label,
        "budget": row.budget,
        "kind": column.kind,
        "prior": dict(column.settings).get("prior", "none"),
        "label": column.name,
        "mean": value.mean if value else None,
        "std": value.std if value else None,
        "n": len(value.seeds) if value else 0,
        "seeds": list(value.seeds) if value else [],
        "best": best,
        "above_star": above,
    }


def _cost_record(results: Sequence[Result], row: Row, column: Column) -> dict[str, Any]:
    """The account of a trained cell; empty fields for a baseline, which has none."""
    budget = 1.0 if column.kind == "plain_star" else row.budget
    account = account_of(results_in(results, Row(row.shared, budget, ""), column)) if column.is_trained else None
    return account.record if account else dict.fromkeys(COST_KEYS)


# ---------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Parts:
    """What is asked for beside the scores; `axis` is the cost to be equal in, or None; `pairs` are names of columns.

    margin: points within which two ways count as equivalent, or None. every: all protocols, however narrow the screen.
    """

    cost: bool = False
    differences: bool = False
    axis: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    margin: float | None = None
    every: bool = False


def print_table(folders: Sequence[Path]) -> None:
    """Print the table of these run folders, as at the end of a sweep; without a result, one line says so."""
    problems: list[str] = []
    try:
        results = results_of(collect(folders, problems))
    except RelaError as error:
        print(f"no table: {error}")
        return
    show(results, protocols_of(results), notes_of(results) + problems, "rich", Parts())


def notes_of(results: Sequence[Result]) -> list[str]:
    """What a reader of the table has to know about runs that are missing in it."""
    unfinished = Counter(str(result.raw["status"]) for result in results if not result.finished)
    skipped = Counter(str(result.raw["probe_skipped"]) for result in results if result.raw.get("probe_skipped"))
    notes = [f"not probed: {plural(n, 'run')} ({reason})" for reason, n in skipped.items()]
    if unfinished:
        statuses = ", ".join(f"{n} {status}" for status, n in sorted(unfinished.items()))
        notes.append(f"not finished, shown as missing: {plural(unfinished.total(), 'run')} ({statuses})")
    return notes


def grids_of(results: Sequence[Result], protocols: Sequence[Protocol], parts: Parts) -> list[Grid]:
    """All that is asked for, in the order in which it is shown."""
    grids = score_grids(results, protocols, parts.every)
    for some in by_dataset(results):
        grids += comparison_grids(some, protocols, parts.axis, parts.margin) if parts.differences else []
        grids += [grid for pair in parts.pairs for grid in between_grids(some, protocols, *pair, parts.margin)]
    return grids + [
        cost_grid(some) for some in by_dataset(results) if parts.cost and any(result.finished for result in some)
    ]


def show(results: Sequence[Result], protocols: Sequence[Protocol], notes: list[str], form: str, parts: Parts) -> None:
    """Print a table in one of FORMATS, and what there is to say about it."""
    if form in ("csv", "json"):
        formats.write_records(records(results, protocols, parts), form, notes)
        return
    grids = grids_of(results, protocols, parts)
    if not grids:
        notes = ["no run has been probed yet, so there is no table", *notes]
    formats.print_grids(grids, form, notes)
