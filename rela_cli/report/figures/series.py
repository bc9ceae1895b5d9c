"""What all plots share: groups of runs, series of points, and how they are drawn."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rela_cli.report.figures.style import PAPER, SOFT, Label, PriorStyle, lighter, style_of
from rela_cli.report.grids.cells import SEEN, UNKNOWN
from rela_cli.report.results.comparison import (
    Column,
    Protocol,
    Result,
    Row,
    Score,
    columns_of,
    label_mark,
    rows_of,
    score,
)
from rela_cli.report.results.settings import OWN_COLUMNS, Settings, differing, settings_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEARBY, LEAST_SPAN = 0.35, 4.0  # a reference line that far from the series is drawn; points that they span at least
RING = 11  # points across
BESIDE = (2.0, 0.05, 0.3)  # a lone budget's gap; between series, in logarithms and of the smallest gap in all, at most
DASHES = ("-", "--", "-.", ":")  # variants of one prior; after these again, lighter
DASH = {"untrained": ":", "plain_star": "--", "prior_alone": "-."}  # of reference lines
LABEL_MARKS = {SEEN: "†: its prior has seen these labels", UNKNOWN: "?: nobody says which labels its prior has seen"}


@dataclass(frozen=True)
class Group:
    """Runs that may be compared: all shares its settings but the budget."""

    name: str
    shared: Settings
    results: tuple[Result, ...]

    @property
    def budgets(self) -> list[float]:
        return sorted({result.budget for result in self.results})

    def row(self, budget: float) -> Row:
        return Row(self.shared, budget, "")


class Plot(NamedTuple):
    """A figure still to be drawn: its kind, the start of a file name, what it shows in words, and how it is made.

    `rank` grows with what there is to compare: how many ways to a backbone, then the budget.
    """

    kind: str
    name: str
    words: str
    draw: Callable[[], Figure]
    rank: tuple[int, float] = (0, 0.0)


def groups_of(results: Sequence[Result]) -> list[Group]:
    """The comparable groups, in the order of the tables."""
    finished = [result for result in results if result.finished]
    keys = differing({result.shared for result in finished})
    found: dict[Settings, str] = {}
    for row in rows_of(finished):
        found[row.shared] = " · ".join(filter(None, (*row.names, settings_text(row.shared, keys))))
    return [Group(name, key, tuple(r for r in finished if r.shared == key)) for key, name in found.items()]


def file_slug(text: str) -> str:
    """A piece of a file name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-")[:80]


class At(NamedTuple):
    """A cell on a curve: where it is, its budget, its score."""

    x: float
    budget: float
    score: Score


@dataclass(frozen=True)
class Series:
    """One way to a backbone over its budgets."""

    label: str
    style: PriorStyle
    dash: str
    column: Column
    points: tuple[At, ...]


def trained_columns(group: Group) -> list[tuple[Column, PriorStyle, str]]:
    """Plain and each variant, and how each is drawn: the longest curve of a prior has the strongest line."""
    columns = [column for column in columns_of(group.results) if column.kind in ("plain", "prior")]
    common = usual_settings([column.settings for column in columns if column.kind == "prior"])
    budgets = Counter(variant for variant, _ in {(result.variant, result.budget) for result in group.results})
    found: dict[Column, tuple[Column, PriorStyle, str]] = {}
    seen: dict[str, int] = defaultdict(int)
    for column in sorted(columns, key=lambda one: -budgets[one.settings]):
        prior = dict(column.settings).get("prior", "plain")
        again, dash = divmod(seen[prior], len(DASHES))
        head = "\n".join(line for line in column.head.split("\n") if line not in common)
        found[column] = replace(column, head=head), lighter(style_of(prior), again), DASHES[dash]
        seen[prior] += 1
    return [found[column] for column in columns]


def usual_settings(variants: Sequence[Settings]) -> set[str]:
    """What most variants share, as `key=value`, where several keys vary: names say what is unusual."""
    keys = {key for key in differing(variants) if key not in OWN_COLUMNS}
    found = set()
    for key in keys if len(keys) > 1 else ():
        (value, first), (_, second) = Counter(dict(variant).get(key, "") for variant in variants).most_common(2)
        if value and first > second:
            found.add(f"{key}={value}")
    return found


def series_of(group: Group, protocol: Protocol, x_of: Callable[[Row, Column], float | None]) -> list[Series]:
    """Curves of the cells that have a number and a place on the x axis."""
    found = []
    for column, style, dash in trained_columns(group):
        points = []
        for budget in group.budgets:
            value, x = score(group.results, group.row(budget), column, protocol), x_of(group.row(budget), column)
            if value is not None and x is not None:
                points.append(At(x, budget, value))
        if points:  # two budgets may cost the same
            name = column.name + label_mark(group.results, group.row(points[0].budget), column)
            found.append(Series(name, style, dash, column, tuple(sorted(points, key=lambda p: p[:2]))))
    return found


def references(group: Group, protocol: Protocol) -> Iterator[tuple[Label, str]]:
    """Horizontal lines: untrained, plain*, each prior alone; with the kind of each.

    Another transport that leaves a prior alone where it was has no line of its own.
    """
    row, drawn = group.row(group.budgets[-1]), set[tuple[str, str]]()
    for column in columns_of(group.results):
        value = score(group.results, row, column, protocol) if column.kind in DASH else None
        if value is None:
            continue
        place = (dict(column.settings).get("prior", column.kind), f"{100 * value.mean:.1f}")
        if place in drawn:
            continue
        drawn.add(place)
        colour = style_of(dict(column.settings)["prior"]).colour if column.kind == "prior_alone" else SOFT
        name = column.name.replace(" prior alone", " alone") + label_mark(group.results, row, column)
        yield Label(100 * value.mean, f"{name} {place[1]}", colour), column.kind


def labels_of(found: Sequence[Series], group: Group, protocol: Protocol) -> list[Label]:
    """What the margin names: each series at its last point, and each reference line."""
    ends = [(one, one.points[-1].x, 100 * one.points[-1].score.mean) for one in found]
    labels = [Label(y, f"{one.label} {y:.1f}", one.style.colour, bold=True, x=x) for one, x, y in ends]
    has_star = any(one.column.kind == "plain" and one.points[-1].budget == 1 for one in found)  # it names both
    return labels + [
        label for label, column in references(group, protocol) if not (has_star and column == "plain_star")
    ]


def dodged(found: Sequence[Series], budgets: Sequence[float]) -> list[Series]:
    """The series a little beside one another, so that their error bars do not lie on each other."""
    if len(found) < 2 or all(point.score.std is None for one in found for point in one.points):
        return list(found)
    gap = min((math.log(right / left) for left, right in pairwise(budgets)), default=math.log(BESIDE[0]))
    step = min(BESIDE[1], BESIDE[2] * gap / (len(found) - 1))
    moved = []
    for number, one in enumerate(found):
        factor = math.exp(step * (number - (len(found) - 1) / 2))
        moved.append(replace(one, points=tuple(point._replace(x=factor * point.x) for point in one.points)))
    return moved


def close_up(axes: Axes, found: Sequence[Series], group: Group, protocol: Protocol) -> None:
    """Limit the y axis to the series and what is near to them; what is far away keeps its label, with an arrow."""
    ends = [100 * (p.score.mean + sign * (p.score.std or 0)) for one in found for p in one.points for sign in (-1, 1)]
    reach = NEARBY * max(max(ends) - min(ends), LEAST_SPAN)
    near = [label.y for label, _ in references(group, protocol)]
    ends += [y for y in near if min(ends) - reach <= y <= max(ends) + reach]
    low, high, lacking = min(ends), max(ends), max(LEAST_SPAN - max(ends) + min(ends), 0.0)
    air = 0.07 * (high - low) + lacking / 2
    axes.set_ylim(low - air, high + air)


def draw_series(axes: Axes, found: Sequence[Series]) -> None:
    """Lines with error bars."""
    for one in found:
        x, y = [p.x for p in one.points], [100 * p.score.mean for p in one.points]
        errors = [100 * (p.score.std or 0) for p in one.points]
        axes.errorbar(
            x, y, errors, color=one.style.colour, marker=one.style.marker, ls=one.dash, capsize=2.5, elinewidth=1,
            markeredgecolor=PAPER, markeredgewidth=0.6, zorder=3,
        )  # fmt: skip


def draw_references(axes: Axes, group: Group, protocol: Protocol) -> None:
    """Reference lines."""
    for label, kind in references(group, protocol):
        axes.axhline(label.y, color=label.colour, ls=DASH[kind], lw=1, alpha=0.75, zorder=2)


def measured_how(group: Group, protocol: Protocol, found: Sequence[Series]) -> list[str]:
    """The notes under a title: what was trained, and how the number was measured."""
    counts = sorted({len(p.score.seeds) for one in found for p in one.points})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    bars = "one seed" if counts == [1] else f"mean and standard deviation over {seeds} seeds"
    marks = "".join(label.text for label, _ in references(group, protocol)) + "".join(one.label for one in found)
    seen = [words for mark, words in LABEL_MARKS.items() if mark in marks]
    return [group.name, "; ".join([f"{protocol.name} probe, {protocol.network} network", bars, *seen])]


def spread_log_ticks(axes: Axes, at: Sequence[float], names: Sequence[str]) -> None:
    """A logarithmic axis with ticks at these places and no others, and air on both sides."""
    axes.set_xscale("log")
    axes.set_xlim(at[0] / 1.15, at[-1] * 1.15)
    axes.set_xticks(at, names)
    axes.set_xticks([], minor=True)
