"""What a switch saw, and when it left phase 1."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rela_cli.report.figures.ink import readable_ink
from rela_cli.report.figures.series import Group, Plot, trained_columns
from rela_cli.report.figures.style import INK, PAPER, SOFT, PriorStyle, new_figure, room_for_ticks, titled
from rela_cli.report.figures.training import KEY_ROW, START, dot, whole_steps
from rela_cli.report.results import run_files
from rela_cli.report.results.comparison import Protocol, Result, results_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRACE_POINTS = 1500  # of a trace that are drawn; more than a screen shows
NEAREST = 1e-3  # to 1, of a rho that is drawn
LOSS = "#b9bec4"
TRACE_NOTES = (
    "grey: loss, solid: its fast average, dashed: its slow average",
    "phase 1 ends where rho = exp(fast - slow), at most 1, reaches its threshold",
)
TRACES_ABREAST = 4  # traces beside one another in a plot
NARROW = 26  # letters of a title over one of them


Traced = tuple[str, Result, PriorStyle, list[run_files.LogLine]]


def trace_plots(group: Group, protocols: Sequence[Protocol], axis: str) -> Iterator[Plot]:
    """One plot a budget that has a ReLA run with a trace."""
    for budget in group.budgets:
        found = traced(group, budget)
        for start in range(0, len(found), TRACES_ABREAST):
            part = f"-{1 + start // TRACES_ABREAST}" if len(found) > TRACES_ABREAST else ""
            shown = found[start : start + TRACES_ABREAST]
            words = f"loss trace of the matching at budget {budget:g}"
            rank = (len(shown), budget)
            yield Plot("trace", f"trace-b{budget:g}{part}", words, partial(trace_figure, group, budget, shown), rank)


def traced(group: Group, budget: float) -> list[Traced]:
    """The run of the lowest seed of each variant, with its trace, thinned."""
    found = []
    for column, style, _ in trained_columns(group):
        results = sorted(results_in(group.results, group.row(budget), column), key=lambda result: result.seed)
        lines = run_files.read_jsonl(results[0].folder / "switch.jsonl") if results and column.settings else []
        if lines:
            found.append((column.name, results[0], style, lines[:: 1 + len(lines) // TRACE_POINTS]))
    return found


def trace_figure(group: Group, budget: float, found: Sequence[Traced]) -> Figure:
    """Above: matching loss and its fast and slow averages; below: rho, its threshold, and the switch."""
    watched = any(has_averages(lines) for *_, lines in found)  # a fixed switch keeps no averages and no rho
    width, height, ratios = max(5.8, 0.9 + 2.2 * len(found)), 4.4 if watched else 3.0, (3, 2) if watched else (1,)
    figure, panels = new_figure(
        width, height, nrows=len(ratios), ncols=len(found), sharex=True, sharey="row", height_ratios=ratios
    )
    seeds = sorted({result.seed for _, result, _, _ in found})
    notes = [f"{group.name}; budget {100 * budget:g} %, seed {', '.join(map(str, seeds))}"]
    notes += TRACE_NOTES if watched else ["grey: loss; the switch is fixed beforehand and watches no averages"]
    names = [textwrap.fill(name, NARROW) for name, *_ in found]
    top = titled(figure, "What the switch saw", notes, left=0.7 / width)
    top -= max(name.count("\n") for name in names) * KEY_ROW / height
    bottom = 0.44 / height
    figure.subplots_adjust(left=0.7 / width, right=0.985, top=top - 0.05, bottom=bottom, hspace=0.1, wspace=0.08)
    last = max(max(lines[-1]["step"], result.raw.get("switch_step") or 0) for _, result, _, lines in found)
    for name, (_, result, style, lines), above, below in zip(names, found, panels, panels[-len(found) :], strict=False):
        above.set_title(name, color=readable_ink(style.colour, PAPER), fontweight="bold")
        draw_losses(above, lines)
        if watched:
            draw_rho(below, result, style, lines)
        below.set_xlabel("step")
        mark_switch(above, below, result)
        whole_steps(below, last)  # the panels share it
    losses = [line["loss"] for *_, lines in found for line in lines]
    above_all = max(losses) + 0.12  # the slow average starts at 2 and says nothing there
    panels[0].set_ylim(min(losses) - 0.03, max(1.25, above_all) if watched else above_all)
    panels[0].set_ylabel("loss, 1 − cosine")  # noqa: RUF001
    if watched:
        panels[len(found)].set_ylabel("rho")
    room_for_ticks(figure)
    return figure


def has_averages(lines: Sequence[run_files.LogLine]) -> bool:
    """Whether the switch kept averages at all; a fixed one leaves them where they start."""
    return any((line.get("fast"), line.get("slow")) not in (START, (None, None)) for line in lines)


def draw_losses(axes: Axes, lines: Sequence[run_files.LogLine]) -> None:
    """Loss, fast and slow."""
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    alone = {"marker": "o", "ms": 4} if len(lines) == 1 else {}  # a line of one point is not seen
    axes.plot(steps, losses, color=LOSS, lw=0.6, **alone)  # type: ignore[arg-type]
    if has_averages(lines):
        axes.plot(steps, [line["fast"] for line in lines], color=INK, lw=1.5, **alone)  # type: ignore[arg-type]
        axes.plot(steps, [line["slow"] for line in lines], color=INK, lw=1.5, ls="--", **alone)  # type: ignore[arg-type]


def draw_rho(axes: Axes, result: Result, style: PriorStyle, lines: Sequence[run_files.LogLine]) -> None:
    """rho and the threshold at which phase 1 ends, on a scale that grows towards 1: it all happens there."""
    if not has_averages(lines):
        axes.text(0.5, 0.5, "no rho", transform=axes.transAxes, ha="center", color=SOFT, fontsize=8)
        axes.set_yticks([])
        return
    axes.set_yscale("log")
    axes.set_ylim(1, NEAREST)
    axes.set_yticks([1, 0.1, 0.01, NEAREST], ["0", "0.9", "0.99", "0.999"])
    axes.set_yticks([], minor=True)
    shares = [(line["step"], max(1 - line["rho"], NEAREST)) for line in lines]
    axes.plot(*zip(*shares, strict=True), color=style.colour, **dot(shares, style))
    if threshold := dict(result.variant).get("switch.threshold"):
        axes.axhline(max(1 - float(threshold), NEAREST), color=SOFT, lw=0.9, ls="--")
        place = (0.03, max(1 - float(threshold), NEAREST))
        axes.annotate(f"threshold {threshold}", place, (0, 2), xycoords=axes.get_yaxis_transform(),
                      textcoords="offset points", fontsize=7.5, color=SOFT)  # fmt: skip


def mark_switch(above: Axes, below: Axes, result: Result) -> None:
    """A vertical line where phase 1 was left, and where that was."""
    step, total = result.raw.get("switch_step"), result.raw.get("steps")
    words = "never left"
    if step:
        for axes in (above, below):
            axes.axvline(step, color=INK, lw=1, ls=":")
        words = f"left at step {step:,}" + (f", {100 * step / total:.0f} %" if total else "")
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    above.text(0.98, 0.96, words, transform=above.transAxes, ha="right", va="top", fontsize=7.5, bbox=box)
