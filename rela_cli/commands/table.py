"""`rela table`: what ReLA buys at a budget, for every protocol, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from rela_cli.config.arguments import OneOf
from rela_cli.report.between import checked_columns
from rela_cli.report.comparison import (
    protocols_of,
)
from rela_cli.report.options import Parser, results_at
from rela_cli.report.paired import AXES
from rela_cli.report.tables import FORMATS, Parts, notes_of, show


def main(argv: Sequence[str]) -> int:
    """`rela table [PATH...]`: print the tables of the runs found; returns the exit status.

    Raises:
        ConfigError: for a command line that cannot be meant.
        RelaError: when there is nothing to show.
    """
    arguments = parser().read(argv)
    problems: list[str] = []
    results = results_at(arguments, problems)
    protocols = protocols_of(results, arguments.protocol or "all", arguments.network)
    pairs = tuple(checked_columns(results, *pair) for pair in arguments.between)
    parts = Parts(arguments.cost, arguments.differences or bool(arguments.equal_cost), arguments.equal_cost, pairs)
    show(results, protocols, notes_of(results) + problems, arguments.format, parts)
    return 0


def parser() -> Parser:
    """The command line of `rela table`."""
    made = Parser(
        "table", "Compare the runs found at PATH.", ["rela table --cost", "rela table --format md > table.md"]
    )
    made.add_argument("--format", default="rich", type=OneOf("--format", FORMATS), help=", ".join(FORMATS))
    made.add_protocol("all")
    made.add_argument("--cost", action="store_true", help="also what the runs cost, prior pass included")
    paired = "also ReLA minus plain at the same seed, with a 95 %% interval"
    made.add_argument("--differences", action="store_true", help=paired)
    between = "also A minus B at the same seed, of any two columns, such as patches random; may be given again"
    made.add_argument("--between", nargs=2, metavar=("A", "B"), action="append", default=[], help=between)
    axes = f"the differences at equal cost too, and the cost to reach plain*: {', '.join(AXES)}"
    made.add_argument("--equal-cost", metavar="AXIS", type=OneOf("--equal-cost", tuple(AXES)), help=axes)
    return made
