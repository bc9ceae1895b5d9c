"""How much variance the components of the targets explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from rela_cli.report.figures.series import Group, Plot, spread_log_ticks, trained_columns
from rela_cli.report.figures.style import PAPER, Label, margin_labels, new_figure, room_for_ticks, style_of, titled
from rela_cli.report.results import run_files
from rela_cli.report.results.comparison import Protocol, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT = 0.105  # of the single plots: where axes and titles start


def variance_plots(group: Group, protocols: Sequence[Protocol], axis: str) -> Iterator[Plot]:
    """One plot, if a transport of the PCA family was fitted and is still in the cache."""
    if any(run_files.spectrum(result.folder) for result in one_run_each(group)):
        yield Plot("variance", "variance", "explained variance of the transport", partial(variance_figure, group))


def one_run_each(group: Group) -> list[Result]:
    """A run for each prior and transport."""
    found: dict[tuple[str, ...], Result] = {}
    for column, _, _ in trained_columns(group):
        for result in group.results:
            if column.settings and result.variant == column.settings:
                inputs = run_files.read_manifest(result.folder).get("inputs") or {}
                found.setdefault((dict(column.settings)["prior"], str(inputs.get("features"))), result)
    return list(found.values())


def variance_figure(group: Group) -> Figure:
    """Cumulative share of the features' variance against components; the dot is where the learner's width ends."""
    figure, (axes,) = new_figure()
    notes = [group.name, "dot: the components that the learner is matched to, and the variance that they carry"]
    top = titled(figure, "Explained variance of the transport", notes, LEFT)
    figure.subplots_adjust(left=LEFT, right=0.70, top=top, bottom=0.125)
    labels, longest = [], 1
    for result in one_run_each(group):
        shares = run_files.spectrum(result.folder)
        if not shares:
            continue
        prior = dict(result.variant)["prior"]
        style, longest = style_of(prior), max(longest, len(shares))
        total = [100 * share for share in accumulate(shares)]
        kept = min(result.raw.get("target_dim") or len(shares), len(shares))
        axes.plot(range(1, len(total) + 1), total, color=style.colour)
        axes.plot(kept, total[kept - 1], color=style.colour, marker=style.marker, ms=7, mec=PAPER)
        text = f"{prior}: {kept} of {len(shares)}\ncarry {total[kept - 1]:.1f} %"
        labels.append(Label(total[kept - 1], text, style.colour, x=kept))
    powers = [2**i for i in range(0, longest.bit_length(), 1 if longest < 512 else 2)]
    spread_log_ticks(axes, powers, [str(power) for power in powers])
    axes.set_xlim(right=longest * 1.15)
    axes.set_ylim(0, 102)
    axes.set(xlabel="principal components of the prior's features", ylabel="variance explained, cumulative, %")
    margin_labels(axes, labels, size=7.5, lines=2)
    room_for_ticks(figure)
    return figure
