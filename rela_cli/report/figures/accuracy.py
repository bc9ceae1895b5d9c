"""Accuracy against budget and against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rela_cli.report.differences.paired import mean_cost
from rela_cli.report.figures.series import (
    RING,
    Group,
    Plot,
    Series,
    close_up,
    dodged,
    draw_references,
    draw_series,
    labels_of,
    measured_how,
    series_of,
    spread_log_ticks,
)
from rela_cli.report.figures.style import SOFT, margin_figure, margin_labels, number_points, room_for_ticks
from rela_cli.report.grids.cells import SEEN
from rela_cli.report.results.comparison import Column, Protocol, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_UNITS: dict[str, list[tuple[float, str]]] = {  # sizes of an axis' units, smallest first
    "flops": [(10.0**e, f"{prefix}FLOP") for e, prefix in ((6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E"))],
    "seconds": [(1, "seconds"), (60, "minutes"), (3600, "hours")],
    "samples": [(1, "images seen"), (1e3, "thousands of images seen"), (1e6, "millions of images seen")],
}

LEAST_SPAN = 8.0  # an axis of cost spans at least this factor: a few percent are no difference


def accuracy_plots(
    group: Group, protocols: Sequence[Protocol], axis: str, kind: str, draw: Callable[..., Figure], words: str
) -> Iterator[Plot]:
    """One plot a protocol, where there is a number, and a cost if that is what it stands against."""
    for protocol in protocols:
        x_of = cost_of(group, axis) if kind == "cost" else budget_of
        if series_of(group, protocol, x_of):
            network = "" if protocol.network == "online" else f"-{protocol.network}"
            extra = f"-{axis}" if kind == "cost" else ""
            name = f"{kind}{extra}-{protocol.name}{network}"
            yield Plot(kind, name, f"{words}, {protocol.name} probe", partial(draw, group, protocol, axis))


def budget_of(row: Row, column: Column) -> float:
    """The x axis of accuracy against budget."""
    return row.budget


def budget_figure(group: Group, protocol: Protocol, axis: str) -> Figure:
    """Accuracy against budget, a line for each way to a backbone."""
    found = dodged(series_of(group, protocol, budget_of), group.budgets)
    labels = labels_of(found, group, protocol)
    figure, axes = margin_figure("Accuracy against budget", measured_how(group, protocol, found), labels)
    draw_series(axes, found)
    draw_references(axes, group, protocol)
    spread_log_ticks(axes, group.budgets, [f"{100 * budget:g}" for budget in group.budgets])
    axes.set(xlabel="budget: images drawn each epoch, % of the train split", ylabel="top-1, %")
    close_up(axes, found, group, protocol)
    margin_labels(axes, labels)
    room_for_ticks(figure)
    return figure


def cost_figure(group: Group, protocol: Protocol, axis: str) -> Figure:
    """Accuracy against what it cost, prior pass included, and the frontier: nothing cheaper is better."""
    found = series_of(group, protocol, cost_of(group, axis))
    labels = labels_of(found, group, protocol)
    notes = measured_how(group, protocol, found)
    notes.append("the prior's pass included; numbers: budget, %; ringed: nothing cheaper is as good")
    figure, axes = margin_figure("Accuracy against cost", notes, labels)
    draw_frontier(axes, found)
    draw_series(axes, found)
    draw_references(axes, group, protocol)
    unit = log_ticks(axes, axis)
    close_up(axes, found, group, protocol)
    number_points(axes, [[(p.x, 100 * p.score.mean, f"{100 * p.budget:g}") for p in one.points] for one in found])
    axes.set(xlabel=f"cost of extract + transport + train, {unit}", ylabel="top-1, %")
    margin_labels(axes, labels)
    room_for_ticks(figure)
    return figure


def cost_of(group: Group, axis: str) -> Callable[[Row, Column], float | None]:
    """The x axis of accuracy against cost."""
    return lambda row, column: mean_cost(group.results, row, column.settings, axis)


def draw_frontier(axes: Axes, found: Sequence[Series]) -> None:
    """Rings around the cells that nothing cheaper or equally dear beats; those whose prior saw the labels apart."""
    best, ringed = float("-inf"), []
    fair = [one for one in found if SEEN not in one.label]
    for x, y in sorted((p.x, 100 * p.score.mean) for one in fair for p in one.points):
        if y > best:
            best = y
            ringed.append((x, y))
    if len(ringed) > 1:
        xs, ys = zip(*ringed, strict=True)
        axes.plot(xs, ys, ls="none", marker="o", ms=RING, mfc="none", mec=SOFT, mew=1, zorder=2, gid="frontier")


def log_ticks(axes: Axes, axis: str) -> str:
    """A logarithmic axis with ticks at 1, 2, 5, 10, ... of a unit that suits its largest value; the unit's name."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, largest = axes.get_xlim()
    if largest / low < LEAST_SPAN:
        middle = math.sqrt(low * largest)
        axes.set_xlim(middle / LEAST_SPAN**0.5, middle * LEAST_SPAN**0.5)
    size, unit = max((pair for pair in AXIS_UNITS[axis] if pair[0] <= largest), default=AXIS_UNITS[axis][0])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:g}"))
    return unit
