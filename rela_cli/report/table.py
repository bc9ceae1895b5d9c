"""The table of a project: what ReLA buys at a budget, for every protocol, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rela_cli.artifacts import warn
from rela_cli.errors import RelaError
from rela_cli.report import formats
from rela_cli.report.arguments import Parser, one_of, runs_at
from rela_cli.report.collect import collect, counted
from rela_cli.report.compare import (
    ACCOUNT,
    COST_KEYS,
    NAMES,
    PROTOCOLS,
    Column,
    Cost,
    Protocol,
    Row,
    Run,
    Score,
    columns_of,
    compared,
    cost,
    label_mark,
    marked,
    protocols_of,
    rows_of,
    runs_in,
    runs_of,
    saw_labels,
    score,
    without_constants,
)
from rela_cli.report.differences import AXES, comparison_grids, comparison_record
from rela_cli.report.formats import ABOVE, BEST, MISSING, SEEN, UNKNOWN, Cell, Grid

FORMATS = ("rich", "md", "csv", "json", "latex")
LEGEND = (
    ("plain*", "plain on everything (budget 1), all else equal"),
    (BEST, "best trained cell of its row"),
    (ABOVE, "better than plain*"),
    ("± (n)", "standard deviation over n seeds"),
    (MISSING, "no result"),
)
ONE_SEED = ("n", "1 seed in every cell")
UNKNOWN_LEGEND = (UNKNOWN, "nobody says which labels its prior was trained with: prior.card.labels_seen=[...] says it")
SEEN_LEGEND = (SEEN, "its prior was trained with the labels of this very dataset, so it is never best or underlined")
COST_HEADS = (*ACCOUNT, "samples\nseen", "steps", "switch\nat step", "peak\nmemory")
COST_LEGEND = (
    ("total", "extract + transport + train; the prior pass counts also when it came from the cache"),
    (MISSING, "no such stage, or not known"),
)

# ---------------------------------------------------------------------------------------------------- grids


def score_grid(runs: Sequence[Run], protocol: Protocol) -> Grid:
    """The table of one protocol."""
    rows, columns = compared(rows_of(runs), runs), columns_of(runs)
    every_label = [(*row.names, row.label, f"{row.budget:g}") for row in rows]
    title, heads, labels = without_constants((*NAMES, "settings", "budget"), every_label, keep=1)
    how = PROTOCOLS.get(protocol.name, "a probe of its own")
    title.append(f"top-1 % by {protocol.name} ({how}), {protocol.network} network")
    scores_of = {row: [score(runs, row, column, protocol) for column in columns] for row in rows}
    counts = {len(value.seeds) for scores in scores_of.values() for value in scores if value}
    cells = []
    for row, scores in scores_of.items():
        marks = [label_mark(runs, row, column) for column in columns]
        best = marked(scores, columns, [mark == SEEN for mark in marks])
        triples = zip(scores, marks, best, strict=True)
        cells.append(tuple(_score_cell(value, mark, *stands, counts != {1}) for value, mark, stands in triples))
    legend = (
        LEGEND
        + (ONE_SEED,) * (counts == {1})
        + tuple(
            words
            for words in (SEEN_LEGEND, UNKNOWN_LEGEND)
            if any(words[0] in cell.text for line in cells for cell in line)
        )
    )
    return Grid(" · ".join(title), heads, tuple(c.head for c in columns), labels, tuple(cells), legend)


def _score_cell(value: Score | None, mark: str, best: bool, above: bool, counted: bool) -> Cell:
    if value is None:
        return Cell()
    deviation = "" if value.std is None else f"±{100 * value.std:.1f}"
    count = f" ({len(value.seeds)})" if counted else ""
    return Cell(f"{100 * value.mean:.1f}{mark}", (deviation + count).strip(), best, above)


# ----------------------------------------------------------------------------------------------------- cost


def cost_grid(runs: Sequence[Run]) -> Grid:
    """One line for each trained cell: time and work by stage, and the size of the run."""
    every_label, cells = [], []
    columns = [column for column in columns_of(runs) if column.kind in ("plain", "prior")]
    for row in rows_of(runs):
        for column in columns:
            account = cost(runs_in(runs, row, column))
            if account is not None:
                name = "plain*" if column.kind == "plain" and row.budget == 1 else column.head.replace("\n", " ")
                every_label.append((*row.names, row.label, account.device, f"{row.budget:g}", name))
                cells.append(_cost_cells(account, column.kind == "prior"))
    title, heads, labels = without_constants((*NAMES, "settings", "device", "budget", "run"), every_label, keep=2)
    return Grid(" · ".join([*title, "cost, mean over seeds"]), heads, COST_HEADS, labels, tuple(cells), COST_LEGEND)


def _cost_cells(account: Cost, has_switch: bool) -> tuple[Cell, ...]:
    staged = [Cell(duration(account.seconds[s]), formats.si(account.flops[s], "FLOP", empty="")) for s in ACCOUNT]
    switch = _whole(account.switch_step) if account.switch_step is not None or not has_switch else "never"
    sizes = (_whole(account.samples_seen), _whole(account.steps), switch, formats.si(account.peak_memory_bytes, "B"))
    return (*staged, *map(Cell, sizes))


def duration(seconds: float | None) -> str:
    """Three digits in the unit that fits: 0.4 s, 12.3 min, 1.25 h."""
    if not seconds:
        return MISSING
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= size), (1, "s"))
    return f"{formats.three(seconds / size)} {unit}"


def _whole(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


# -------------------------------------------------------------------------------------------------- records


def records(runs: Sequence[Run], protocols: Sequence[Protocol], parts: Parts) -> list[dict[str, Any]]:
    """One record for each row, column and protocol, in full precision; a missing cell has n = 0."""
    columns, found = columns_of(runs), []
    for protocol in protocols or [Protocol("", "")] * parts.cost:
        for row in compared(rows_of(runs), runs):
            scores = [score(runs, row, column, protocol) for column in columns]
            seen = [saw_labels(runs, row, column) for column in columns]
            marks = marked(scores, columns, seen)
            for column, value, saw, mark in zip(columns, scores, seen, marks, strict=True):
                record = _record(protocol, row, column, value, *mark) | {
                    "prior_saw_labels": saw,
                    "labels_unknown": label_mark(runs, row, column) == UNKNOWN,
                }
                if parts.cost:
                    record |= _cost_record(runs, row, column)
                if parts.differences:
                    record |= comparison_record(runs, row, column, protocol, parts.axis)
                found.append(record)
    return found


def _record(
    protocol: Protocol, row: Row, column: Column, value: Score | None, best: bool, above: bool
) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "network": protocol.network,
        **dict(zip(NAMES, row.names, strict=True)),
        "settings": row.label,
        "budget": row.budget,
        "kind": column.kind,
        "prior": dict(column.settings).get("prior", "none"),
        "label": column.head.replace("\n", " "),
        "mean": value.mean if value else None,
        "std": value.std if value else None,
        "n": len(value.seeds) if value else 0,
        "seeds": list(value.seeds) if value else [],
        "best": best,
        "above_star": above,
    }


def _cost_record(runs: Sequence[Run], row: Row, column: Column) -> dict[str, Any]:
    """The account of a trained cell; empty fields for a baseline, which has none."""
    budget = 1.0 if column.kind == "plain_star" else row.budget
    account = cost(runs_in(runs, Row(row.shared, budget, ""), column)) if column.is_trained else None
    return account.record if account else dict.fromkeys(COST_KEYS)


# ---------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Parts:
    """What is asked for beside the scores; `axis` is the cost to be equal in, or None."""

    cost: bool = False
    differences: bool = False
    axis: str | None = None


def main(argv: Sequence[str]) -> int:
    """`rela table [PATH...]`: print the tables of the runs found; returns the exit status.

    Raises:
        ConfigError: for a command line that cannot be meant.
        RelaError: when there is nothing to show.
    """
    arguments = _parser().parse_intermixed_args(argv)
    problems: list[str] = []
    runs = runs_at(arguments, problems)
    protocols = protocols_of(runs, arguments.protocol or "all", arguments.network)
    parts = Parts(arguments.cost, arguments.differences or bool(arguments.equal_cost), arguments.equal_cost)
    _show(runs, protocols, notes_of(runs) + problems, arguments.format, parts)
    return 0


def print_table(folders: Sequence[Path]) -> None:
    """Print the table of these run folders, as at the end of a sweep; without a result, one line says so."""
    problems: list[str] = []
    try:
        runs = runs_of(collect(folders, problems))
    except RelaError as error:
        print(f"no table: {error}")
        return
    _show(runs, protocols_of(runs), notes_of(runs) + problems, "rich", Parts())


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What a reader of the table has to know about runs that are missing in it."""
    unfinished = Counter(str(run.result["status"]) for run in runs if not run.finished)
    skipped = Counter(str(run.result["probe_skipped"]) for run in runs if run.result.get("probe_skipped"))
    notes = [f"not probed: {counted(n, 'run')} ({reason})" for reason, n in skipped.items()]
    if unfinished:
        statuses = ", ".join(f"{n} {status}" for status, n in sorted(unfinished.items()))
        notes.append(f"not finished, shown as missing: {counted(unfinished.total(), 'run')} ({statuses})")
    return notes


def grids_of(runs: Sequence[Run], protocols: Sequence[Protocol], parts: Parts) -> list[Grid]:
    """All that is asked for, in the order in which it is shown."""
    grids = [score_grid(runs, protocol) for protocol in protocols]
    if parts.differences:
        grids += [grid for protocol in protocols for grid in comparison_grids(runs, protocol, parts.axis)]
    return grids + [cost_grid(runs)] * parts.cost


def _show(runs: Sequence[Run], protocols: Sequence[Protocol], notes: list[str], form: str, parts: Parts) -> None:
    if form in ("csv", "json"):
        found = records(runs, protocols, parts)
        formats.write(formats.to_csv(found) if form == "csv" else formats.to_json(found))
        for note in notes:
            warn(note)
        return
    grids = grids_of(runs, protocols, parts)
    if not grids:
        notes = ["no run has been probed yet, so there is no table", *notes]
    if form == "rich":
        formats.print_rich(grids, notes)
    else:
        formats.write((formats.markdown if form == "md" else formats.latex)(grids, notes))


def _parser() -> Parser:
    parser = Parser("table", "Compare the runs found at PATH.")
    parser.add_argument("--format", default="rich", type=one_of("--format", FORMATS), help=", ".join(FORMATS))
    parser.add_protocol("all")
    parser.add_argument("--cost", action="store_true", help="also what the runs cost, prior pass included")
    paired = "also ReLA minus plain at the same seed, with a 95 %% interval"
    parser.add_argument("--differences", action="store_true", help=paired)
    axes = f"the differences at equal cost too, and the cost to reach plain*: {', '.join(AXES)}"
    parser.add_argument("--equal-cost", metavar="AXIS", type=one_of("--equal-cost", tuple(AXES)), help=axes)
    return parser
