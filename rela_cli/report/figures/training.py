"""Curves of training: loss, kNN accuracy and rank over the steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rela_cli.report.figures.ink import readable_ink
from rela_cli.report.figures.series import Group, Plot, trained_columns
from rela_cli.report.figures.style import PAPER, PriorStyle, new_figure, room_for_ticks, titled
from rela_cli.report.results import run_files
from rela_cli.report.results.comparison import Protocol, Result, results_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY_ROW, KEY_LETTER, KEY_LINE = 0.17, 0.078, 0.63  # inches: a row of the key of colours, a letter and a line in it
TRAINING, PANEL = (6.6, 5.03), 1.9  # inches of the plot without the key, and of a row of panels

START = (1.0, 2.0)  # the averages of a switch that has looked at nothing
CROWD = 8  # ways to a backbone; with more of them the training plot shows means alone
CURVE_POINTS = 100  # points of a loss that is known at every step
PANELS = (
    ("matching loss, 1 − cosine", 1, "loss", 1.0),  # noqa: RUF001
    ("{method} loss", 2, "loss", 1.0),
    ("kNN on held-out train images, %", None, "knn", 100.0),
    ("effective rank of the representation", None, "effective_rank", 1.0),
)


Way = tuple[
    str, PriorStyle, str, list[Result], list[list[run_files.LogLine]]
]  # name, style, dash, results, their lines


def training_plots(group: Group, protocols: Sequence[Protocol], axis: str) -> Iterator[Plot]:
    """One plot a budget."""
    for budget in group.budgets:
        results = [result for result in group.results if result.budget == budget]
        if any(run_files.read_jsonl(result.folder / "metrics.jsonl") for result in results):
            rank = (len({result.variant for result in results}), budget)
            words = f"training curves at budget {budget:g}"
            yield Plot("training", f"training-b{budget:g}", words, partial(training_figure, group, budget), rank)


def training_figure(group: Group, budget: float) -> Figure:
    """Losses, kNN and effective rank against steps; thin lines are seeds, dotted ones the switch.

    Where many are compared, means alone: the seeds of a dozen variants are a thicket.
    """
    shown = list(with_curves(group, budget))
    names, crowded = [one[:3] for one in shown], len(shown) > CROWD
    found = {panel: [curves_in(way, panel) for way in shown] for panel in PANELS}
    kept = [panel for panel, ways in found.items() if any(curve for way in ways for curve in way)]
    columns = min(2, len(kept))
    rows, lines = -(-len(kept) // columns), -(-len(names) // key_columns(names, TRAINING[0]))
    height = TRAINING[1] - PANEL * (2 - rows) + lines * KEY_ROW
    figure, panels = new_figure(TRAINING[0], height, nrows=rows, ncols=columns, sharex=True)
    top = titled(figure, "Training", [f"{group.name}; budget {100 * budget:g} %", lines_are(shown, crowded)], left=0.08)
    last = max(result.raw.get("steps") or 1 for *_, results, _ in shown for result in results)
    for axes, panel in zip(panels, kept, strict=False):
        for (_, style, dash, results, _), curves in zip(shown, found[panel], strict=True):
            draw_curves(axes, curves, style, dash, seeds=not crowded)
            for step in switch_steps(results, crowded):
                axes.axvline(step, color=style.colour, ls=":", lw=1, alpha=0.8)
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


def lines_are(shown: Sequence[Way], crowded: bool) -> str:
    """What thin, bold and dotted lines are, as far as there are any."""
    if crowded:
        means = "means over seeds"
    else:
        means = "thin: each seed, bold: their mean" if any(len(results) > 1 for *_, results, _ in shown) else "one seed"
    switched = any(result.raw.get("switch_step") for *_, results, _ in shown for result in results)
    return means + ", dotted: the switch" * switched


def whole_steps(axes: Axes, last: int) -> None:
    """The x axis from the start to the last step, with ticks at whole steps."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, last * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def curves_in(way: Way, panel: tuple[str, int | None, str, float]) -> list[list[tuple[float, float]]]:
    """What a way to a backbone shows in a panel: a curve for each of its results."""
    return [curve_of(result, lines, *panel[1:]) for result, lines in zip(*way[3:], strict=True)]


def curve_of(
    result: Result, lines: Sequence[run_files.LogLine], phase: int | None, key: str, scale: float
) -> list[tuple[float, float]]:
    """A run's curve in a panel. The matching loss comes from the switch's trace, which has every step of phase 1."""
    trace = run_files.read_jsonl(result.folder / "switch.jsonl") if phase == 1 else []
    if trace:
        return binned_means(
            [(line["step"], scale * line[key]) for line in trace], result.raw.get("steps") or len(trace)
        )
    return picked(lines, phase, key, scale, result.raw.get("switch_step"))


def binned_means(points: Sequence[tuple[float, float]], total: int) -> list[tuple[float, float]]:
    """Means over as many steps as make about CURVE_POINTS points of a whole run; each stands at its last step."""
    size = -(-total // CURVE_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def with_curves(group: Group, budget: float) -> Iterator[Way]:
    """Each way to a backbone that has left curves at a budget: its name, how it is drawn, its runs and their curves."""
    for column, style, dash in trained_columns(group):
        results = results_in(group.results, group.row(budget), column)
        curves = [run_files.read_jsonl(result.folder / "metrics.jsonl") for result in results]
        if any(curves):
            yield column.name, style, dash, results, curves


def switch_steps(results: Sequence[Result], mean: bool) -> set[float]:
    """The steps at which phase 1 ended, or their mean."""
    steps = {float(result.raw["switch_step"]) for result in results if result.raw.get("switch_step")}
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
    axes: Axes, curves: Sequence[list[tuple[float, float]]], style: PriorStyle, dash: str, seeds: bool = True
) -> None:
    """Each seed thinly, if they are asked for, and the mean at the steps that all of them have."""
    curves = [curve for curve in curves if curve]
    for curve in curves if seeds or len(curves) == 1 else ():
        thin = {"lw": 0.7, "alpha": 0.35} if len(curves) > 1 else {"lw": 1.8}
        axes.plot(*zip(*curve, strict=True), color=style.colour, ls=dash, **thin, **dot(curve, style))  # type: ignore[arg-type]
    if len(curves) > 1:
        steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
        means = [statistics.fmean(dict(curve)[step] for curve in curves) for step in steps]
        axes.plot(steps, means, color=style.colour, ls=dash, **dot(steps, style))  # type: ignore[arg-type]


def dot(points: Sequence[Any], style: PriorStyle) -> dict[str, Any]:
    """A marker for a curve of one point, which has no line."""
    return {"marker": style.marker, "ms": 5} if len(points) == 1 else {}


def key_columns(names: Sequence[tuple[str, PriorStyle, str]], width: float) -> int:
    """How many names fit beside one another on so many inches."""
    longest = max((len(name) for name, *_ in names), default=1)
    return max(1, min(5, int(width / (KEY_LETTER * longest + KEY_LINE))))


def colour_key(figure: Figure, names: Sequence[tuple[str, PriorStyle, str]], top: float) -> None:
    """Names in their colours under the notes, with the line that they have, as many in a row as fit."""
    from matplotlib.lines import Line2D

    width = figure.get_size_inches()[0]
    handles = [Line2D([], [], color=style.colour, ls=dash, lw=1.8) for _, style, dash in names]
    legend = figure.legend(
        handles, [name for name, *_ in names], loc="upper left", ncols=key_columns(names, width),
        bbox_to_anchor=(0.06, top + 0.17 / figure.get_size_inches()[1]), handlelength=2.8, columnspacing=1.4,
        handletextpad=0.4, borderpad=0, fontsize=8,
    )  # fmt: skip
    for text, (_, style, _) in zip(legend.get_texts(), names, strict=True):
        text.set_color(readable_ink(style.colour, PAPER))
        text.set_fontweight("bold")
