"""`rela plot`: the plots of finished runs as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rela_cli.config.arguments import Choice
from rela_cli.errors import RelaError
from rela_cli.report.differences.paired import AXES
from rela_cli.report.figures.plots import PLOT_KINDS, plots
from rela_cli.report.figures.style import matplotlib_settings, save_figure
from rela_cli.report.grids.screen import write
from rela_cli.report.results.comparison import Protocol, Result, protocols_of
from rela_cli.report.results.options import ReportParser, results_at, some_of
from rela_cli.store.disk import disk_errors
from rela_cli.terminal import plural

PREFERRED_PROTOCOL = "lbfgs"  # converged, free of the features' scale; the first one measured where it is missing


def main(argv: Sequence[str]) -> int:
    """`rela plot [PATH...]`: draw what the runs found have to show; returns the exit status.

    Raises:
        ConfigError: for a command line that is wrong.
        RelaError: when there is nothing to draw.
    """
    arguments = parser().read(argv)
    problems: list[str] = []
    results = results_at(arguments, problems)
    protocols = chosen_protocols(results, arguments.protocol, arguments.network)
    out = arguments.out or arguments.outputs / "plots"
    with disk_errors(out, way_out="--to=FOLDER"):
        written = draw(results, protocols, arguments.axis, arguments.kind, out)
    for note in problems:
        write(f"note: {note}\n")
    if not written:
        raise RelaError(f"nothing to draw: no finished run here has anything for {', '.join(arguments.kind)}")
    write(f"{plural(len(written), 'plot')}, each as .png and .svg\n")
    return 0


def draw(
    results: Sequence[Result], protocols: Sequence[Protocol], axis: str, kinds: Sequence[str], out: Path
) -> dict[str, Path]:
    """Draw and save; what each plot shows, and its PNG."""
    written: dict[str, Path] = {}
    with matplotlib_settings():
        for plot in plots(results, protocols, axis, kinds):
            written[plot.name], _ = save_figure(plot.draw(), out / plot.name)
            write(f"{written[plot.name]}  {plot.words}\n")
    return written


def chosen_protocols(results: Sequence[Result], name: str | None, network: str) -> list[Protocol]:
    """The protocols asked for; without a word one of them, on the online network if it was measured."""
    found = protocols_of(results, name or "all", network)
    if name or not found:
        return found
    return [next((protocol for protocol in found if protocol.name == PREFERRED_PROTOCOL), found[0])]


def parser() -> ReportParser:
    """The command line of `rela plot`."""
    examples = ["rela plot", "rela plot --kind budget,cost --out FOLDER"]
    made = ReportParser("plot", "Draws the runs found at PATH, as PNG and SVG.", examples)
    made.add_argument("--to", "--out", dest="out", type=Path, metavar="FOLDER", help="default: outputs/plots")
    kinds = some_of("--kind", tuple(PLOT_KINDS))
    made.add_argument(
        "--kind", type=kinds, default=tuple(PLOT_KINDS), help=f"some of {','.join(PLOT_KINDS)} (default: all)"
    )
    axes = Choice("--axis", tuple(AXES))
    made.add_argument("--axis", type=axes, default="flops", help=f"cost in {', '.join(AXES)} (default: flops)")
    made.add_protocol(f"{PREFERRED_PROTOCOL} if measured")
    return made
