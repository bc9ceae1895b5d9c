"""ReLA minus plain at the same seed: at equal budget, at equal cost, and what it costs to reach plain on everything.

The prior's pass is part of every cost. Between its budgets, plain's accuracy is taken to be linear in the logarithm
of its cost: accuracy grows with ever smaller steps, so this is nearer to it than a straight line, and kinder to plain.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rela_cli.report.differences import equivalence
from rela_cli.report.grids.cells import BETTER, EQUAL, MINUS, MISSING, WORSE, Cell, Grid
from rela_cli.report.results.comparison import (
    Column,
    Protocol,
    Result,
    Row,
    by_seed,
    columns_of,
    label_mark,
    measured_by,
    protocols_legend,
    row_labels,
    rows_to_compare,
)
from rela_cli.report.results.costs import MAKING
from rela_cli.report.results.settings import Settings, as_live

AXES = {"flops": "FLOPs", "seconds": "seconds", "samples": "images seen"}  # what a cost may be counted in
CONFIDENCE = 0.95
OUTSIDE_WORDS = {"above": "dearer than any plain run", "below": "cheaper than any plain run"}
PLAIN_VARIANT: Settings = ()

Point = tuple[float, float]  # cost, accuracy
PairedKey = tuple[Row, Column, Protocol]  # of a table of differences
Curves = dict[int, dict[float, Point]]  # by seed, then by budget


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and half of its 95 % interval; one seed has no interval."""

    mean: float
    half: float | None
    seeds: tuple[int, ...]

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half

    def larger_p(self, margin: float) -> float | None:
        """The larger p of the two tests that it lies within a margin, a share of 1; None where one seed is all."""
        return None if self.half is None else equivalence.larger_p(self.mean, self.half, len(self.seeds), margin)

    def is_within(self, margin: float) -> bool:
        """Whether it is equivalent to 0 within a margin: both tests reject."""
        p = self.larger_p(margin)
        return p is not None and p < equivalence.LEVEL


@dataclass(frozen=True)
class Reach:
    """Where a ReLA curve reaches plain*'s accuracy, as a share of plain*'s cost.

    `how` is "at", "at most" (the cheapest budget is there already) or "not reached", where `share` is None.
    """

    share: float | None
    how: str
    seeds: tuple[int, ...]


# --------------------------------------------------------------------------------------------------- per seed


def accuracies(results: Iterable[Result], row: Row, variant: Settings, protocol: Protocol) -> dict[int, float]:
    """Top-1 by seed of the runs of a variant in a row."""
    return by_seed(results, row, Column("prior", "", variant), protocol)


def cost_on_axis(result: Result, axis: str) -> float | None:
    """What making a backbone took on an axis, prior pass included; None where it is not known."""
    if axis == "samples":
        seen, once = result.raw.get("samples_seen"), result.raw.get("train_samples")
        if not seen or (result.variant and not once):
            return None
        phase1 = (result.raw.get("phase1_steps") or 0) / (result.raw.get("steps") or 1)
        again = phase1 * seen if result.is_live else 0.0  # a live prior looks at what the learner sees in phase 1
        return float(seen) + (float(once or 0) if result.variant else 0.0) + again  # and each prior at every image
    account = result.raw.get(axis) or {}
    known = [account.get(stage) or 0 for stage in MAKING]
    return math.fsum(known) if account.get("train") else None


def curve(results: Iterable[Result], row: Row, variant: Settings, protocol: Protocol, axis: str) -> Curves:
    """By seed and budget: cost and accuracy."""
    points: Curves = {}
    for result in results:
        if result.finished and (result.shared, result.variant) == (row.shared, variant):
            value, cost = measured_by(result.raw.get("probe")).get(protocol), cost_on_axis(result, axis)
            if value is not None and cost:
                points.setdefault(result.seed, {})[result.budget] = (cost, value)
    return points


def accuracy_at_cost(points: Sequence[Point], cost: float) -> float | str:
    """Accuracy at a cost, linear in its logarithm; "above" or "below" outside of the points' range."""
    if cost < points[0][0]:
        return "below"
    for (left, low), (right, high) in pairwise(points):
        if cost <= right:
            share = math.log(cost / left) / math.log(right / left) if right > left else 1.0
            return low + share * (high - low)
    return points[0][1] if cost == points[0][0] else "above"


def paired(differences: Mapping[int, float]) -> Difference | None:
    """Mean of the differences by seed, with its t interval."""
    if not differences:
        return None
    values, n = list(differences.values()), len(differences)
    half = None
    if n > 1:
        from scipy.special import stdtrit

        quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
        half = quantile * statistics.stdev(values) / math.sqrt(n)
    return Difference(statistics.fmean(values), half, tuple(sorted(differences)))


def paired_by_seed(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have."""
    return paired({seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()})


# ------------------------------------------------------------------------------------------------ comparisons


def difference_at_budget(
    results: Sequence[Result],
    row: Row,
    variant: Settings,
    protocol: Protocol,
    budget: float,
    than: Settings = PLAIN_VARIANT,
) -> Difference | None:
    """ReLA in a row minus plain, or another variant, at `budget`, over the seeds that both have."""
    theirs = accuracies(results, Row(row.shared, budget, ""), than, protocol)
    return paired_by_seed(accuracies(results, row, variant, protocol), theirs)


def at_equal_cost(
    results: Sequence[Result],
    row: Row,
    variant: Settings,
    protocol: Protocol,
    axis: str,
    than: Settings = PLAIN_VARIANT,
) -> Difference | str | None:
    """ReLA in a row minus what plain, or another variant, reaches at the same cost.

    "above" or "below" where no run of that was as dear, or as cheap.
    """
    plain = curve(results, row, than, protocol, axis)
    differences, outside = {}, None
    here = [result for result in results if result.budget == row.budget]
    for seed, points in curve(here, row, variant, protocol, axis).items():
        cost, value = points[row.budget]
        reached = accuracy_at_cost(sorted(plain[seed].values()), cost) if seed in plain else None
        if isinstance(reached, float):
            differences[seed] = value - reached
        else:
            outside = reached or outside
    return paired(differences) or outside


def mean_points(curves: Curves, budgets: Iterable[float]) -> list[Point]:
    """The mean over seeds at each budget, cheapest first; two budgets may cost the same, in another order each time."""
    at = ([points[budget] for points in curves.values()] for budget in budgets)
    return sorted((statistics.fmean(c for c, _ in found), statistics.fmean(v for _, v in found)) for found in at)


def reach(results: Sequence[Result], row: Row, variant: Settings, protocol: Protocol, axis: str) -> Reach | None:
    """Where the variant's mean curve over its budgets first comes up to plain on everything.

    A seed that lacks one of the budgets is left out.
    """
    star = curve([result for result in results if result.budget == 1], row, PLAIN_VARIANT, protocol, axis)
    every = {seed: points for seed, points in curve(results, row, variant, protocol, axis).items() if seed in star}
    budgets = max((points.keys() for points in every.values()), key=len, default=set[float]())
    ours = {seed: points for seed, points in every.items() if points.keys() >= budgets}
    if not ours:
        return None
    points, seeds = mean_points(ours, budgets), tuple(sorted(ours))
    ((full_cost, goal),) = mean_points({seed: star[seed] for seed in seeds}, [1.0])
    if points[0][1] >= goal:
        return Reach(points[0][0] / full_cost, "at most", seeds)
    for (left, low), (right, high) in pairwise(points):
        if high >= goal:
            share = (goal - low) / (high - low)
            return Reach(left * (right / left) ** share / full_cost, "at", seeds)
    return Reach(None, "not reached", seeds)


def cost_share(results: Sequence[Result], row: Row, variant: Settings, axis: str) -> float | None:
    """Mean cost of a cell as a share of plain*'s."""
    ours = mean_cost(results, row, variant, axis)
    star = mean_cost(results, Row(row.shared, 1.0, ""), PLAIN_VARIANT, axis)
    return ours / star if ours and star else None


def mean_cost(results: Iterable[Result], row: Row, variant: Settings, axis: str) -> float | None:
    """Over the finished runs of a variant in a row."""
    same = (r for r in results if r.finished and (r.shared, r.budget, r.variant) == (row.shared, row.budget, variant))
    known = [cost for result in same if (cost := cost_on_axis(result, axis))]
    return statistics.fmean(known) if known else None


# ------------------------------------------------------------------------------------------------------ grids


def comparison_grids(
    results: Sequence[Result], protocols: Sequence[Protocol], axis: str | None, margin: float | None = None
) -> list[Grid]:
    """The paired differences, and where plain* is reached if an axis of cost is given; nothing without a prior."""
    cells = [(row, c) for row in rows_to_compare(results) for c in columns_of(results) if c.kind == "prior"]
    lines = [(row, c, p) for p in protocols for row, c in cells if accuracies(results, row, c.settings, p)]
    if not lines:
        return []
    return [difference_grid(results, lines, axis, margin), *([reach_grid(results, lines, axis)] if axis else [])]


def difference_grid(
    results: Sequence[Result], lines: Sequence[PairedKey], axis: str | None, margin: float | None = None
) -> Grid:
    """One line for each ReLA cell and protocol."""
    priors = [(prior_label(results, row, c),) for row, c, _ in lines]
    title, heads, labels = row_labels([(row, p) for row, _, p in lines], "ReLA minus plain, points", ("prior",), priors)
    columns = ["minus plain,\nequal budget", "minus plain*"]
    if axis:
        columns = [columns[0], f"minus plain,\nequal {AXES[axis]}", columns[1], f"{AXES[axis]},\n% of plain*"]
    has_live = any(as_live(column.settings) in {result.variant for result in results} for _, column, _ in lines)
    columns += [f"minus live,\nequal {AXES[axis] if axis else 'budget'}"] * has_live
    found = [difference_row(results, row, column.settings, p, axis) for row, column, p in lines]
    if has_live:
        beside = (minus_live(results, row, column, p, axis) for row, column, p in lines)
        last = (Cell(OUTSIDE_WORDS[one].replace("plain", "live")) if isinstance(one, str) else one for one in beside)
        found = [(*line, one) for line, one in zip(found, last, strict=True)]
    legend = (
        *protocols_legend(p for *_, p in lines),
        ("plain*", "plain on everything (budget 1)"),
        *[("equal cost", "plain between its budgets, linear in log cost; the prior's pass counts")] * bool(axis),
        *[("live", "the same, with the prior looking at every view of phase 1 (matching.targets=live)")] * has_live,
    )
    return paired_grid(title, heads, tuple(columns), labels, found, legend, margin)


def minus_live(
    results: Sequence[Result], row: Row, column: Column, protocol: Protocol, axis: str | None
) -> Difference | str | None:
    """Cached targets minus live ones, all else equal: at equal budget, or at equal cost; nothing for what is live."""
    live = as_live(column.settings)
    if live == column.settings:
        return None
    if axis is None:
        return difference_at_budget(results, row, column.settings, protocol, row.budget, live)
    return at_equal_cost(results, row, column.settings, protocol, axis, live)


def paired_grid(
    title: str,
    heads: tuple[str, ...],
    columns: tuple[str, ...],
    labels: tuple[tuple[str, ...], ...],
    found: Sequence[Sequence[Difference | str | Cell | None]],
    legend: Sequence[tuple[str, str]],
    margin: float | None = None,
    measure: str = "top-1",
) -> Grid:
    """A grid of paired differences; how many seeds there are is said once if they are as many in all cells.

    margin: in points; the cells within it say so.
    """
    counts = {len(one.seeds) for line in found for one in line if isinstance(one, Difference)}
    cells = tuple(
        tuple(one if isinstance(one, Cell) else difference_cell(one, len(counts) > 1, margin) for one in line)
        for line in found
    )
    n = "n seeds" if len(counts) != 1 else f"{max(counts)} seeds"
    interval = (
        ("n", "1 seed in every cell, so there is no interval")
        if counts == {1}
        else ("[low, high]" + " (n)" * (len(counts) > 1), f"95 % t interval of the mean over {n}, paired seed by seed")
    )
    meanings = (
        ("points", f"percentage points of {measure}"),
        (BETTER, "the whole interval lies above 0"),
        (WORSE, "the whole interval lies below 0"),
        *([(EQUAL, f"within {margin:g} points, by two one-sided t tests at 5 % each")] if margin else []),
    )
    return Grid(title, heads, columns, labels, cells, (*legend, interval, *meanings, (MISSING, "no pair of seeds")))


def difference_row(
    results: Sequence[Result], row: Row, variant: Settings, protocol: Protocol, axis: str | None
) -> tuple[Difference | str | Cell | None, ...]:
    """Equal budget, equal cost, plain*, share of its cost; without an axis the two that need none."""
    same, star = (difference_at_budget(results, row, variant, protocol, budget) for budget in (row.budget, 1.0))
    if axis is None:
        return same, star
    equal = at_equal_cost(results, row, variant, protocol, axis)
    return same, equal, star, Cell(percent(cost_share(results, row, variant, axis)))


def difference_cell(found: Difference | str | None, counted: bool, margin: float | None = None) -> Cell:
    """+7.2 [+5.1, +9.3] better"""
    if found is None:
        return Cell()
    if isinstance(found, str):
        return Cell(OUTSIDE_WORDS[found])
    interval = f"[{signed(found.low)}, {signed(found.high)}]" if found.low is not None else ""
    count = f"({len(found.seeds)})" if counted else ""
    return Cell(signed(found.mean), f"{interval} {count}".strip(), marks_of(found, margin))


def marks_of(found: Difference, margin: float | None = None) -> tuple[str, ...]:
    """The mark of an interval that does not hold 0, and that of a difference within `margin` points."""
    if found.low is None or found.high is None:
        return ()
    marks = (BETTER,) * (found.low > 0) + (WORSE,) * (found.high < 0)
    return marks + (EQUAL,) * (margin is not None and found.is_within(margin / 100))


def reach_grid(results: Sequence[Result], lines: Sequence[PairedKey], axis: str) -> Grid:
    """One line for the settings of each variant and protocol, over all of its budgets."""
    first = {(row.shared, column.settings, p): (row, column, p) for row, column, p in reversed(lines)}
    kept = [line for line in lines if line in first.values()]
    priors = [(prior_label(results, row, column),) for row, column, _ in kept]
    what = f"{AXES[axis]} to reach plain*, % of plain*'s,"
    title, heads, labels = row_labels([(row, p) for row, _, p in kept], what, ("prior",), priors)
    at = heads.index("budget")  # a line is about all of them
    cells = []
    for row, column, protocol in kept:
        found = reach(results, row, column.settings, protocol, axis)
        budgets = sorted({r.budget for r in results if (r.shared, r.variant) == (row.shared, column.settings)})
        cells.append((reach_cell(found), Cell(", ".join(f"{budget:g}" for budget in budgets))))
    legend = (
        *[("≤", "the cheapest budget is there already")] * any("≤" in cell.text for cell, _ in cells),
        ("(n)", "seeds averaged; between budgets, linear in log cost"),
        (MISSING, "no plain* at the same seeds"),
    )
    labels = tuple((*label[:at], *label[at + 1 :]) for label in labels)
    return Grid(
        title, (*heads[:at], *heads[at + 1 :]), ("cost to reach\nplain*", "budgets"), labels, tuple(cells), legend
    )


def reach_cell(found: Reach | None) -> Cell:
    """59 %, or ≤ 59 % where the cheapest budget is there already, or not reached."""
    if found is None:
        return Cell()
    text = "not reached" if found.share is None else "≤ " * (found.how == "at most") + percent(found.share)
    return Cell(text, f"({len(found.seeds)})")


def prior_label(results: Sequence[Result], row: Row, column: Column) -> str:
    """The prior of a line, with the mark of one that has seen the labels, or of which nobody says."""
    return column.name + label_mark(results, row, column)


def signed(value: float | None) -> str:
    """Points with their sign, a true minus: +7.2."""
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", MINUS)


def percent(share: float | None) -> str:
    """A share in whole percent."""
    return MISSING if share is None else f"{100 * share:.0f} %"
