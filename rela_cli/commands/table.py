"""`rela table`: what ReLA buys at a budget, for every protocol, and what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rela_cli.config.arguments import Choice, PositiveNumber
from rela_cli.errors import ConfigError, MissingError
from rela_cli.report.differences.between import checked_columns
from rela_cli.report.differences.paired import AXES
from rela_cli.report.grids import formats
from rela_cli.report.grids.formats import FORMATS
from rela_cli.report.results.comparison import Result, protocols_of
from rela_cli.report.results.options import ReportParser, results_at
from rela_cli.report.tables import transfer, transfer_grids
from rela_cli.report.tables.tables import Parts, notes_of, show


def main(argv: Sequence[str]) -> int:
    """`rela table [PATH...]`: print the tables of the runs found; returns the exit status.

    Raises:
        ConfigError: for a command line that is wrong.
        RelaError: when there is nothing to show.
    """
    arguments = parser().read(argv)
    if arguments.on:
        show_on(arguments)
        return 0
    problems: list[str] = []
    results = results_at(arguments, problems)
    protocols = protocols_of(results, arguments.protocol or "all", arguments.network)
    pairs = tuple(checked_columns(results, *pair) for pair in arguments.between)
    differences = arguments.differences or bool(arguments.equal_cost) or bool(arguments.within and not pairs)
    every = arguments.protocol == "all"
    parts = Parts(arguments.cost, differences, arguments.equal_cost, pairs, arguments.within, every)
    show(results, protocols, notes_of(results) + problems, arguments.format, parts)
    return 0


def show_on(given: argparse.Namespace) -> None:
    """The tables of what backbones are worth on some datasets.

    Raises:
        ConfigError: with an option that these tables do not have.
    """
    for name in ("cost", "between", "equal_cost", "within"):
        if getattr(given, name):
            raise ConfigError(f"--{name.replace('_', '-')} does not go with --on: leave out one of the two")
    problems: list[str] = []
    lines = transfer.lines_of(*judged_results(given, problems), problems)
    transfer.with_one_size(lines)
    datasets = transfer.chosen_datasets(lines, given.on)
    protocols = transfer.protocols_in(lines, datasets, given.protocol or "all", given.network)
    if given.format in ("csv", "json"):
        formats.write_records(transfer_grids.records_on(lines, datasets, protocols), given.format, problems)
        return
    grids = transfer_grids.grids_on(lines, datasets, protocols)
    grids += transfer_grids.difference_grids(lines, datasets, protocols) if given.differences else []
    formats.print_grids(grids, given.format, transfer_grids.notes_on(lines, datasets) + problems)


def judged_results(given: argparse.Namespace, problems: list[str]) -> tuple[list[Result], list[Path]]:
    """The runs at the paths given, and the priors that were judged.

    Raises:
        MissingError: neither.
    """
    priors = transfer.priors_in(given.paths or [given.outputs])
    try:
        return results_at(given, problems), priors
    except MissingError:
        if not priors:
            raise
        return [], priors


def parser() -> ReportParser:
    """The command line of `rela table`."""
    made = ReportParser(
        "table",
        "Compares the runs found at PATH.",
        ["rela table --cost", "rela table --on digits,stl10", "rela table --format md > table.md"],
    )
    made.add_argument("--format", default="rich", type=Choice("--format", FORMATS), help=", ".join(FORMATS))
    made.add_protocol("all")
    on = "one column for each of these datasets, and the mean; all: every dataset on which runs were judged"
    made.add_argument("--on", metavar="DATASET,...", type=lambda text: tuple(text.split(",")), default=(), help=on)
    made.add_argument("--cost", action="store_true", help="also the cost of the runs, prior pass included")
    paired = "also ReLA minus plain at the same seed, with a 95 %% interval"
    made.add_argument("--differences", action="store_true", help=paired)
    between = "also column A minus column B at the same seed, such as patches random; may be given again"
    made.add_argument("--between", nargs=2, metavar=("A", "B"), action="append", default=[], help=between)
    axes = f"also the differences at equal cost, and the cost to reach plain*: {', '.join(AXES)}"
    made.add_argument("--equal-cost", metavar="AXIS", type=Choice("--equal-cost", tuple(AXES)), help=axes)
    within = "mark differences within so many points of 0 as equivalent, by two one-sided t tests"
    made.add_argument("--within", metavar="POINTS", type=PositiveNumber("--within"), help=within)
    return made
