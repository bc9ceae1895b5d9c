"""The plots of `rela plot` and `rela report`: from runs to figures. matplotlib is imported where one is made."""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rela_cli.report import left
from rela_cli.report.compare import (
    OWN,
    Column,
    Protocol,
    Row,
    Run,
    Score,
    Settings,
    columns_of,
    differing,
    label_mark,
    labelled,
    rows_of,
    runs_in,
    score,
)
from rela_cli.report.differences import cost_of
from rela_cli.report.formats import SEEN, UNKNOWN
from rela_cli.report.ink import readable
from rela_cli.report.style import (
    INK,
    PAPER,
    SOFT,
    Label,
    Look,
    lighter,
    look,
    margin_figure,
    margin_labels,
    new_figure,
    number_points,
    room_for_ticks,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1500  # of a trace that are drawn; more than a screen shows
UNITS: dict[str, list[tuple[float, str]]] = {  # sizes of an axis' units, smallest first
    "flops": [(10.0**e, f"{prefix}FLOP") for e, prefix in ((6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E"))],
    "seconds": [(1, "seconds"), (60, "minutes"), (3600, "hours")],
    "samples": [(1, "images seen"), (1e3, "thousands of images seen"), (1e6, "millions of images seen")],
}
LEFT = 0.105  # of the single plots: where axes and titles start
NEAREST = 1e-3  # to 1, of a rho that is drawn
LOSS = "#b9bec4"
RING = 11  # points across
BESIDE = (2.0, 0.05, 0.3)  # a lone budget's gap; between series, in logarithms and of the smallest gap in all, at most
NEARBY, LEAST_SPAN = 0.35, 4.0  # a reference line that far from the series is drawn; points that they span at least
WIDE = 8.0  # an axis of cost spans at least this factor: a few percent are no difference
WATCHED = (
    "grey: loss, solid: its fast average, dashed: its slow average",
    "phase 1 ends where rho = exp(fast - slow), at most 1, reaches its threshold",
)
START = (1.0, 2.0)  # the averages of a switch that has looked at nothing
COLUMNS = 4  # traces beside one another in a plot
DASHES = ("-", "--", "-.", ":")  # variants of one prior; after these again, lighter
CROWD = 8  # ways to a backbone; with more of them the training plot shows means alone


@dataclass(frozen=True)
class Group:
    """Runs that may be compared: all shares its settings but the budget."""

    name: str
    shared: Settings
    runs: tuple[Run, ...]

    @property
    def budgets(self) -> list[float]:
        return sorted({run.budget for run in self.runs})

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


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The comparable groups, in the order of the tables."""
    finished = [run for run in runs if run.finished]
    keys = differing({run.shared for run in finished})
    found: dict[Settings, str] = {}
    for row in rows_of(finished):
        found[row.shared] = " · ".join(filter(None, (*row.names, labelled(row.shared, keys))))
    return [Group(name, key, tuple(r for r in finished if r.shared == key)) for key, name in found.items()]


def plots(runs: Sequence[Run], protocols: Sequence[Protocol], axis: str, kinds: Iterable[str]) -> Iterator[Plot]:
    """All plots that the runs have anything for, by group."""
    groups = groups_of(runs)
    for group in groups:
        suffix = f"-{slug(group.name)}" if len(groups) > 1 else ""
        for kind in kinds:
            for plot in KINDS[kind](group, protocols, axis):
                yield plot._replace(name=plot.name + suffix)


def slug(text: str) -> str:
    """A piece of a file name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-")[:80]


# ----------------------------------------------------------------------------------------------------- series


class At(NamedTuple):
    """A cell on a curve: where it is, its budget, its score."""

    x: float
    budget: float
    score: Score


@dataclass(frozen=True)
class Series:
    """One way to a backbone over its budgets."""

    label: str
    look: Look
    dash: str
    column: Column
    points: tuple[At, ...]


def trained(group: Group) -> list[tuple[Column, Look, str]]:
    """Plain and each variant, with how they are drawn."""
    found: list[tuple[Column, Look, str]] = []
    seen: dict[str, int] = defaultdict(int)
    columns = columns_of(group.runs)
    common = usual([column.settings for column in columns if column.kind == "prior"])
    for column in columns:
        if column.kind in ("plain", "prior"):
            prior = dict(column.settings).get("prior", "plain")
            again, dash = divmod(seen[prior], len(DASHES))
            head = "\n".join(line for line in column.head.split("\n") if line not in common)
            found.append((replace(column, head=head), lighter(look(prior), again), DASHES[dash]))
            seen[prior] += 1
    return found


def usual(variants: Sequence[Settings]) -> set[str]:
    """What most variants share, as `key=value`, where several keys vary: names say what is unusual."""
    keys = {key for key in differing(variants) if key not in OWN}
    found = set()
    for key in keys if len(keys) > 1 else ():
        (value, first), (_, second) = Counter(dict(variant).get(key, "") for variant in variants).most_common(2)
        if value and first > second:
            found.add(f"{key}={value}")
    return found


def series_of(group: Group, protocol: Protocol, x_of: Callable[[Row, Column], float | None]) -> list[Series]:
    """Curves of the cells that have a number and a place on the x axis."""
    found = []
    for column, drawn, dash in trained(group):
        points = []
        for budget in group.budgets:
            value, x = score(group.runs, group.row(budget), column, protocol), x_of(group.row(budget), column)
            if value is not None and x is not None:
                points.append(At(x, budget, value))
        if points:  # two budgets may cost the same
            name = words_of(column) + label_mark(group.runs, group.row(points[0].budget), column)
            found.append(Series(name, drawn, dash, column, tuple(sorted(points, key=lambda p: p[:2]))))
    return found


def words_of(column: Column) -> str:
    """A column's head in one line."""
    return column.head.replace("\n", " ")


LABEL_MARKS = {SEEN: "†: its prior has seen these labels", UNKNOWN: "?: nobody says which labels its prior has seen"}
DASH = {"untrained": ":", "plain_star": "--", "prior_alone": "-."}  # of reference lines


def references(group: Group, protocol: Protocol) -> Iterator[tuple[Label, str]]:
    """Horizontal lines: untrained, plain*, each prior alone; with the kind of each."""
    row = group.row(group.budgets[-1])
    for column in columns_of(group.runs):
        value = None if column.is_trained and column.kind != "plain_star" else score(group.runs, row, column, protocol)
        if value is None:
            continue
        colour = look(dict(column.settings)["prior"]).colour if column.kind == "prior_alone" else SOFT
        name = words_of(column).replace(" prior alone", " alone") + label_mark(group.runs, row, column)
        yield Label(100 * value.mean, f"{name} {100 * value.mean:.1f}", colour), column.kind


def labels_of(found: Sequence[Series], group: Group, protocol: Protocol) -> list[Label]:
    """What the margin names: each series at its last point, and each reference line."""
    ends = [(one, one.points[-1].x, 100 * one.points[-1].score.mean) for one in found]
    labels = [Label(y, f"{one.label} {y:.1f}", one.look.colour, bold=True, x=x) for one, x, y in ends]
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
            x, y, errors, color=one.look.colour, marker=one.look.marker, ls=one.dash, capsize=2.5, elinewidth=1,
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


# ----------------------------------------------------------------------------------- accuracy against something


def accuracy_plots(
    group: Group, protocols: Sequence[Protocol], axis: str, kind: str, draw: Callable[..., Figure], words: str
) -> Iterator[Plot]:
    """One plot a protocol, where there is a number, and a cost if that is what it stands against."""
    for protocol in protocols:
        x_of = (lambda row, column: mean_cost(group, row, column, axis)) if kind == "cost" else budget_of
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


def spread_log_ticks(axes: Axes, at: Sequence[float], names: Sequence[str]) -> None:
    """A logarithmic axis with ticks at these places and no others, and air on both sides."""
    axes.set_xscale("log")
    axes.set_xlim(at[0] / 1.15, at[-1] * 1.15)
    axes.set_xticks(at, names)
    axes.set_xticks([], minor=True)


def cost_figure(group: Group, protocol: Protocol, axis: str) -> Figure:
    """Accuracy against what it cost, prior pass included, and the frontier: nothing cheaper is better."""
    found = series_of(group, protocol, lambda row, column: mean_cost(group, row, column, axis))
    labels = labels_of(found, group, protocol)
    notes = measured_how(group, protocol, found)
    notes.append("the prior's pass included; numbers: budget, %; ringed: nothing cheaper is as good")
    figure, axes = margin_figure("Accuracy against cost", notes, labels)
    draw_frontier(axes, found)
    draw_series(axes, found)
    draw_references(axes, group, protocol)
    unit = log_ticks(axes, axis)
    close_up(axes, found, group, protocol)
    number_points(axes, [budgets_at(one) for one in found])
    axes.set(xlabel=f"cost of extract + transport + train, {unit}", ylabel="top-1, %")
    margin_labels(axes, labels)
    room_for_ticks(figure)
    return figure


def budgets_at(one: Series) -> list[tuple[float, float, str]]:
    """(x, y, budget in %) of each point."""
    return [(p.x, 100 * p.score.mean, f"{100 * p.budget:g}") for p in one.points]


def mean_cost(group: Group, row: Row, column: Column, axis: str) -> float | None:
    """Over the finished runs of a cell."""
    known = [cost for run in runs_in(group.runs, row, column) if (cost := cost_of(run, axis))]
    return statistics.fmean(known) if known else None


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
    if largest / low < WIDE:
        middle = math.sqrt(low * largest)
        axes.set_xlim(middle / WIDE**0.5, middle * WIDE**0.5)
    size, unit = max((pair for pair in UNITS[axis] if pair[0] <= largest), default=UNITS[axis][0])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:g}"))
    return unit


# ---------------------------------------------------------------------------------------------------- training


KEY_ROW, KEY_LETTER, KEY_LINE = 0.17, 0.078, 0.63  # inches: a row of the key of colours, a letter and a line in it
TRAINING, PANEL = (6.6, 5.03), 1.9  # inches of the plot without the key, and of a row of panels
STEPS = 100  # points of a loss that is known at every step
PANELS = (
    ("matching loss, 1 − cosine", 1, "loss", 1.0),  # noqa: RUF001
    ("{method} loss", 2, "loss", 1.0),
    ("kNN on held-out train images, %", None, "knn", 100.0),
    ("effective rank of the representation", None, "effective_rank", 1.0),
)


def training_plots(group: Group, protocols: Sequence[Protocol], axis: str) -> Iterator[Plot]:
    """One plot a budget."""
    for budget in group.budgets:
        runs = [run for run in group.runs if run.budget == budget]
        if any(left.lines(folder(run) / "metrics.jsonl") for run in runs):
            rank = (len({run.variant for run in runs}), budget)
            words = f"training curves at budget {budget:g}"
            yield Plot("training", f"training-b{budget:g}", words, partial(training_figure, group, budget), rank)


def training_figure(group: Group, budget: float) -> Figure:
    """Losses, kNN and effective rank against steps; thin lines are seeds, dotted ones the switch.

    Where many are compared, means alone: the seeds of a dozen variants are a thicket.
    """
    shown = list(with_curves(group, budget))
    names, crowded = [one[:3] for one in shown], len(shown) > CROWD
    found = {panel: [[curve_of(run, lines, *panel[1:]) for run, lines in zip(*one[3:], strict=True)] for one in shown]
             for panel in PANELS}  # fmt: skip
    kept = [panel for panel, ways in found.items() if any(curve for way in ways for curve in way)]
    columns = min(2, len(kept))
    rows, lines = -(-len(kept) // columns), -(-len(names) // key_columns(names, TRAINING[0]))
    height = TRAINING[1] - PANEL * (2 - rows) + lines * KEY_ROW
    figure, panels = new_figure(TRAINING[0], height, nrows=rows, ncols=columns, sharex=True)
    top = titled(figure, "Training", [f"{group.name}; budget {100 * budget:g} %", lines_are(shown, crowded)], left=0.08)
    last = max(run.result.get("steps") or 1 for *_, runs, _ in shown for run in runs)
    for axes, panel in zip(panels, kept, strict=False):
        for (_, drawn, dash, runs, _), curves in zip(shown, found[panel], strict=True):
            draw_curves(axes, curves, drawn, dash, seeds=not crowded)
            for step in switches(runs, crowded):
                axes.axvline(step, color=drawn.colour, ls=":", lw=1, alpha=0.8)
        axes.set_title(panel[0].format(method=dict(group.shared).get("method", "method")))
        whole_steps(axes, last)
    for axes in panels[len(kept) :]:
        axes.set_visible(False)
    for axes in panels[len(kept) - columns : len(kept)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    colour_key(figure, names, top)
    top -= (0.12 + lines * KEY_ROW) / height
    figure.subplots_adjust(left=0.08, right=0.985, top=top, bottom=0.44 / height, hspace=0.27, wspace=0.2)
    room_for_ticks(figure)
    return figure


def lines_are(shown: Sequence[tuple[str, Look, str, list[Run], list[list[left.Line]]]], crowded: bool) -> str:
    """What thin, bold and dotted lines are, as far as there are any."""
    if crowded:
        means = "means over seeds"
    else:
        means = "thin: each seed, bold: their mean" if any(len(runs) > 1 for *_, runs, _ in shown) else "one seed"
    switched = any(run.result.get("switch_step") for *_, runs, _ in shown for run in runs)
    return means + ", dotted: the switch" * switched


def whole_steps(axes: Axes, last: int) -> None:
    """The x axis from the start to the last step, with ticks at whole steps."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, last * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def curve_of(
    run: Run, lines: Sequence[left.Line], phase: int | None, key: str, scale: float
) -> list[tuple[float, float]]:
    """A run's curve in a panel. The matching loss comes from the switch's trace, which has every step of phase 1."""
    trace = left.lines(folder(run) / "switch.jsonl") if phase == 1 else []
    if trace:
        return averaged([(line["step"], scale * line[key]) for line in trace], run.result.get("steps") or len(trace))
    return picked(lines, phase, key, scale, run.result.get("switch_step"))


def averaged(points: Sequence[tuple[float, float]], total: int) -> list[tuple[float, float]]:
    """Means over as many steps as make about STEPS points of a whole run; each stands at its last step."""
    size = -(-total // STEPS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def with_curves(group: Group, budget: float) -> Iterator[tuple[str, Look, str, list[Run], list[list[left.Line]]]]:
    """Each way to a backbone that has left curves at a budget: its name, how it is drawn, its runs and their curves."""
    for column, drawn, dash in trained(group):
        runs = runs_in(group.runs, group.row(budget), column)
        curves = [left.lines(folder(run) / "metrics.jsonl") for run in runs]
        if any(curves):
            yield words_of(column), drawn, dash, runs, curves


def switches(runs: Sequence[Run], mean: bool) -> set[float]:
    """The steps at which phase 1 ended, or their mean."""
    steps = {float(run.result["switch_step"]) for run in runs if run.result.get("switch_step")}
    return {statistics.fmean(steps)} if mean and steps else steps


def picked(
    lines: Sequence[Mapping[str, Any]], phase: int | None, key: str, scale: float, switch_step: int | None
) -> list[tuple[float, float]]:
    """(step, value) of the records that have the key, of one phase if one is asked for.

    The loss of a record is a mean over its steps; one that holds steps of both phases is no loss of either.
    """
    found, before = [], 0
    for line in lines:
        mixed = switch_step is not None and before + 1 < switch_step <= line["step"]
        before = line["step"]
        if isinstance(line.get(key), int | float) and (phase is None or (phase == line.get("phase") and not mixed)):
            found.append((line["step"], scale * line[key]))
    return found


def draw_curves(
    axes: Axes, curves: Sequence[list[tuple[float, float]]], drawn: Look, dash: str, seeds: bool = True
) -> None:
    """Each seed thinly, if they are asked for, and the mean at the steps that all of them have."""
    curves = [curve for curve in curves if curve]
    for curve in curves if seeds or len(curves) == 1 else ():
        thin = {"lw": 0.7, "alpha": 0.35} if len(curves) > 1 else {"lw": 1.8}
        axes.plot(*zip(*curve, strict=True), color=drawn.colour, ls=dash, **thin, **dot(curve, drawn))  # type: ignore[arg-type]
    if len(curves) > 1:
        steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
        means = [statistics.fmean(dict(curve)[step] for curve in curves) for step in steps]
        axes.plot(steps, means, color=drawn.colour, ls=dash, **dot(steps, drawn))  # type: ignore[arg-type]


def dot(points: Sequence[Any], drawn: Look) -> dict[str, Any]:
    """A marker for a curve of one point, which has no line."""
    return {"marker": drawn.marker, "ms": 5} if len(points) == 1 else {}


def key_columns(names: Sequence[tuple[str, Look, str]], width: float) -> int:
    """How many names fit beside one another on so many inches."""
    longest = max((len(name) for name, *_ in names), default=1)
    return max(1, min(5, int(width / (KEY_LETTER * longest + KEY_LINE))))


def colour_key(figure: Figure, names: Sequence[tuple[str, Look, str]], top: float) -> None:
    """Names in their colours under the notes, with the line that they have, as many in a row as fit."""
    from matplotlib.lines import Line2D

    width = figure.get_size_inches()[0]
    handles = [Line2D([], [], color=drawn.colour, ls=dash, lw=1.8) for _, drawn, dash in names]
    legend = figure.legend(
        handles, [name for name, *_ in names], loc="upper left", ncols=key_columns(names, width),
        bbox_to_anchor=(0.06, top + 0.17 / figure.get_size_inches()[1]), handlelength=2.8, columnspacing=1.4,
        handletextpad=0.4, borderpad=0, fontsize=8,
    )  # fmt: skip
    for text, (_, drawn, _) in zip(legend.get_texts(), names, strict=True):
        text.set_color(readable(drawn.colour, PAPER))
        text.set_fontweight("bold")


def folder(run: Run) -> Path:
    """Where a run lies."""
    return Path(run.result["path"])


# --------------------------------------------------------------------------------------------------- transport


def variance_plots(group: Group, protocols: Sequence[Protocol], axis: str) -> Iterator[Plot]:
    """One plot, if a transport of the PCA family was fitted and is still in the cache."""
    if any(left.spectrum(folder(run)) for run in one_run_each(group)):
        yield Plot("variance", "variance", "explained variance of the transport", partial(variance_figure, group))


def one_run_each(group: Group) -> list[Run]:
    """A run for each prior and transport."""
    found: dict[tuple[str, ...], Run] = {}
    for column, _, _ in trained(group):
        for run in group.runs:
            if column.settings and run.variant == column.settings:
                inputs = left.manifest(folder(run)).get("inputs") or {}
                found.setdefault((dict(column.settings)["prior"], str(inputs.get("features"))), run)
    return list(found.values())


def variance_figure(group: Group) -> Figure:
    """Cumulative share of the features' variance against components; the dot is where the learner's width ends."""
    figure, (axes,) = new_figure()
    notes = [group.name, "dot: the components that the learner is matched to, and the variance that they carry"]
    top = titled(figure, "Explained variance of the transport", notes, LEFT)
    figure.subplots_adjust(left=LEFT, right=0.70, top=top, bottom=0.125)
    labels, longest = [], 1
    for run in one_run_each(group):
        shares = left.spectrum(folder(run))
        if not shares:
            continue
        prior = dict(run.variant)["prior"]
        drawn, longest = look(prior), max(longest, len(shares))
        total = [100 * share for share in accumulate(shares)]
        kept = min(run.result.get("target_dim") or len(shares), len(shares))
        axes.plot(range(1, len(total) + 1), total, color=drawn.colour)
        axes.plot(kept, total[kept - 1], color=drawn.colour, marker=drawn.marker, ms=7, mec=PAPER)
        text = f"{prior}: {kept} of {len(shares)}\ncarry {total[kept - 1]:.1f} %"
        labels.append(Label(total[kept - 1], text, drawn.colour, x=kept))
    powers = [2**i for i in range(0, longest.bit_length(), 1 if longest < 512 else 2)]
    spread_log_ticks(axes, powers, [str(power) for power in powers])
    axes.set_xlim(right=longest * 1.15)
    axes.set_ylim(0, 102)
    axes.set(xlabel="principal components of the prior's features", ylabel="variance explained, cumulative, %")
    margin_labels(axes, labels, size=7.5, lines=2)
    room_for_ticks(figure)
    return figure


# ------------------------------------------------------------------------------------------------------- trace


Traced = tuple[str, Run, Look, list[left.Line]]


def trace_plots(group: Group, protocols: Sequence[Protocol], axis: str) -> Iterator[Plot]:
    """One plot a budget that has a ReLA run with a trace."""
    for budget in group.budgets:
        found = traced(group, budget)
        for start in range(0, len(found), COLUMNS):
            part = f"-{1 + start // COLUMNS}" if len(found) > COLUMNS else ""
            shown = found[start : start + COLUMNS]
            words = f"loss trace of the matching at budget {budget:g}"
            rank = (len(shown), budget)
            yield Plot("trace", f"trace-b{budget:g}{part}", words, partial(trace_figure, group, budget, shown), rank)


NARROW = 26  # letters over a panel of the trace


def traced(group: Group, budget: float) -> list[Traced]:
    """The run of the lowest seed of each variant, with its trace, thinned."""
    found = []
    for column, drawn, _ in trained(group):
        runs = sorted(runs_in(group.runs, group.row(budget), column), key=lambda run: run.seed)
        lines = left.lines(folder(runs[0]) / "switch.jsonl") if runs and column.settings else []
        if lines:
            found.append((words_of(column), runs[0], drawn, lines[:: 1 + len(lines) // POINTS]))
    return found


def trace_figure(group: Group, budget: float, found: Sequence[Traced]) -> Figure:
    """Above: matching loss and its fast and slow averages; below: rho, its threshold, and the switch."""
    watched = any(moves(lines) for *_, lines in found)  # a fixed switch keeps no averages and no rho
    width, height, ratios = max(5.8, 0.9 + 2.2 * len(found)), 4.4 if watched else 3.0, (3, 2) if watched else (1,)
    figure, panels = new_figure(
        width, height, nrows=len(ratios), ncols=len(found), sharex=True, sharey="row", height_ratios=ratios
    )
    seeds = sorted({run.seed for _, run, _, _ in found})
    notes = [f"{group.name}; budget {100 * budget:g} %, seed {', '.join(map(str, seeds))}"]
    notes += WATCHED if watched else ["grey: loss; the switch is fixed beforehand and watches no averages"]
    names = [textwrap.fill(name, NARROW) for name, *_ in found]
    top = titled(figure, "What the switch saw", notes, left=0.7 / width)
    top -= max(name.count("\n") for name in names) * KEY_ROW / height
    bottom = 0.44 / height
    figure.subplots_adjust(left=0.7 / width, right=0.985, top=top - 0.05, bottom=bottom, hspace=0.1, wspace=0.08)
    last = max(max(lines[-1]["step"], run.result.get("switch_step") or 0) for _, run, _, lines in found)
    for name, (_, run, drawn, lines), above, below in zip(names, found, panels, panels[-len(found) :], strict=False):
        above.set_title(name, color=readable(drawn.colour, PAPER), fontweight="bold")
        draw_losses(above, lines)
        if watched:
            draw_rho(below, run, drawn, lines)
        below.set_xlabel("step")
        mark_switch(above, below, run)
        whole_steps(below, last)  # the panels share it
    losses = [line["loss"] for *_, lines in found for line in lines]
    above_all = max(losses) + 0.12  # the slow average starts at 2 and says nothing there
    panels[0].set_ylim(min(losses) - 0.03, max(1.25, above_all) if watched else above_all)
    panels[0].set_ylabel("loss, 1 − cosine")  # noqa: RUF001
    if watched:
        panels[len(found)].set_ylabel("rho")
    room_for_ticks(figure)
    return figure


def moves(lines: Sequence[left.Line]) -> bool:
    """Whether the switch kept averages at all; a fixed one leaves them where they start."""
    return any((line.get("fast"), line.get("slow")) not in (START, (None, None)) for line in lines)


def draw_losses(axes: Axes, lines: Sequence[left.Line]) -> None:
    """Loss, fast and slow."""
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    alone = {"marker": "o", "ms": 4} if len(lines) == 1 else {}  # a line of one point is not seen
    axes.plot(steps, losses, color=LOSS, lw=0.6, **alone)  # type: ignore[arg-type]
    if moves(lines):
        axes.plot(steps, [line["fast"] for line in lines], color=INK, lw=1.5, **alone)  # type: ignore[arg-type]
        axes.plot(steps, [line["slow"] for line in lines], color=INK, lw=1.5, ls="--", **alone)  # type: ignore[arg-type]


def draw_rho(axes: Axes, run: Run, drawn: Look, lines: Sequence[left.Line]) -> None:
    """rho and the threshold at which phase 1 ends, on a scale that grows towards 1: it all happens there."""
    if not moves(lines):
        axes.text(0.5, 0.5, "no rho", transform=axes.transAxes, ha="center", color=SOFT, fontsize=8)
        axes.set_yticks([])
        return
    axes.set_yscale("log")
    axes.set_ylim(1, NEAREST)
    axes.set_yticks([1, 0.1, 0.01, NEAREST], ["0", "0.9", "0.99", "0.999"])
    axes.set_yticks([], minor=True)
    shares = [(line["step"], max(1 - line["rho"], NEAREST)) for line in lines]
    axes.plot(*zip(*shares, strict=True), color=drawn.colour, **dot(shares, drawn))
    if threshold := dict(run.variant).get("switch.threshold"):
        axes.axhline(max(1 - float(threshold), NEAREST), color=SOFT, lw=0.9, ls="--")
        place = (0.03, max(1 - float(threshold), NEAREST))
        axes.annotate(f"threshold {threshold}", place, (0, 2), xycoords=axes.get_yaxis_transform(),
                      textcoords="offset points", fontsize=7.5, color=SOFT)  # fmt: skip


def mark_switch(above: Axes, below: Axes, run: Run) -> None:
    """A vertical line where phase 1 was left, and where that was."""
    step, total = run.result.get("switch_step"), run.result.get("steps")
    words = "never left"
    if step:
        for axes in (above, below):
            axes.axvline(step, color=INK, lw=1, ls=":")
        words = f"left at step {step:,}" + (f", {100 * step / total:.0f} %" if total else "")
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    above.text(0.98, 0.96, words, transform=above.transAxes, ha="right", va="top", fontsize=7.5, bbox=box)


KINDS: dict[str, Callable[..., Iterator[Plot]]] = {
    "budget": partial(accuracy_plots, kind="budget", draw=budget_figure, words="accuracy against budget"),
    "cost": partial(accuracy_plots, kind="cost", draw=cost_figure, words="accuracy against cost"),
    "training": training_plots,
    "variance": variance_plots,
    "trace": trace_plots,
}
