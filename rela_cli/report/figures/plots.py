"""The plots of `rela plot` and `rela report`: from runs to figures. matplotlib is imported where one is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from rela_cli.report.figures.accuracy import accuracy_plots, budget_figure, cost_figure
from rela_cli.report.figures.series import Plot, file_slug, groups_of
from rela_cli.report.figures.switch import trace_plots
from rela_cli.report.figures.training import training_plots
from rela_cli.report.figures.transport import variance_plots
from rela_cli.report.results.comparison import Protocol, Result


def plots(results: Sequence[Result], protocols: Sequence[Protocol], axis: str, kinds: Iterable[str]) -> Iterator[Plot]:
    """Every plot for which the runs have data, group by group."""
    groups = groups_of(results)
    for group in groups:
        suffix = f"-{file_slug(group.name)}" if len(groups) > 1 else ""
        for kind in kinds:
            for plot in PLOT_KINDS[kind](group, protocols, axis):
                yield plot._replace(name=plot.name + suffix)


PLOT_KINDS: dict[str, Callable[..., Iterator[Plot]]] = {
    "budget": partial(accuracy_plots, kind="budget", draw=budget_figure, words="accuracy against budget"),
    "cost": partial(accuracy_plots, kind="cost", draw=cost_figure, words="accuracy against cost"),
    "training": training_plots,
    "variance": variance_plots,
    "trace": trace_plots,
}
