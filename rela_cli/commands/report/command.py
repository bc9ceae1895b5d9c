"""`rela report`: one HTML file about some runs, to be looked at and sent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rela_cli.commands.plot import chosen_protocols
from rela_cli.commands.report.neighbours import neighbours_or_why
from rela_cli.config.arguments import Choice
from rela_cli.report.differences.paired import AXES
from rela_cli.report.figures.series import groups_of
from rela_cli.report.grids.screen import write
from rela_cli.report.page import page
from rela_cli.report.results.collect import unfinished
from rela_cli.report.results.comparison import Protocol, Result, protocols_of, results_in
from rela_cli.report.results.options import ReportParser, results_at
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import write_text
from rela_cli.store.notices import warn
from rela_cli.terminal import printable

WAY_OUT = "--to=FILE"
EXAMPLES = ["rela report", "rela report outputs/runs/latest --out run.html --no-neighbours"]


def main(argv: Sequence[str]) -> int:
    """`rela report [PATH...]`: write the page; returns the exit status.

    Raises:
        ConfigError: for a command line that is wrong.
        RelaError: when there is no result at all.
    """
    arguments = parser().read(argv)
    problems: list[str] = []
    results = results_at(arguments, problems)
    protocols = protocols_of(results, arguments.protocol or "all", arguments.network)
    shown = next(iter(chosen_protocols(results, arguments.protocol, arguments.network)), None)
    near = {} if arguments.no_neighbours else pictures(results, shown)
    found = page.PageInputs(
        results,
        unfinished(arguments.paths or [arguments.outputs]),
        protocols,
        shown,
        arguments.axis,
        near,
        problems,
        arguments.title or "",
    )
    text = printable(page.page(found), lines=True)
    out = arguments.out or arguments.outputs / "report.html"
    with disk_errors(out, way_out=WAY_OUT):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text, WAY_OUT)
    write(f"{out}  {len(text) / 1e6:.1f} MB, nothing else needed to look at it\n")
    return 0


def pictures(results: Sequence[Result], protocol: Protocol | None) -> Mapping[str, Sequence[page.Neighbourhood] | str]:
    """Neighbours by the best run of each group, or why there are none."""
    found = {}
    for group in groups_of(results):
        best = page.best_cell(group, protocol) if protocol else None
        cell = results_in(group.results, group.row(best[2]), best[3]) if best else list(group.results)
        result = min((result for result in cell if result.finished), key=lambda result: result.seed)
        warn(f"nearest neighbours by {result.folder.name}")
        found[result.folder.name] = neighbours_or_why(result.folder)
    return found


def parser() -> ReportParser:
    """The command line of `rela report`."""
    made = ReportParser(
        "report", "Writes one HTML file about the runs at PATH: tables, plots, neighbours, cost, commands.", EXAMPLES
    )
    made.add_argument("--to", "--out", dest="out", type=Path, metavar="FILE", help="default: outputs/report.html")
    made.add_argument("--title", help="the heading (default: dataset, learner and method)")
    axes = Choice("--axis", tuple(AXES))
    made.add_argument("--axis", type=axes, default="flops", help=f"cost in {', '.join(AXES)} (default: flops)")
    made.add_argument(
        "--no-neighbours", action="store_true", help="leave out the nearest neighbours; then torch is not loaded"
    )
    made.add_protocol("all, the first of them lbfgs")
    return made
