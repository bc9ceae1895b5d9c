"""What the command lines of `rela table`, `rela plot` and `rela report` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rela_cli.config import arguments
from rela_cli.config.arguments import Choice
from rela_cli.config.schema import NETWORKS, PROTOCOLS
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import Result, results_of
from rela_cli.report.results.prior_names import prior_and_name

PATHS = "outputs folder, folder of runs, run folder or result.json (default: outputs)"


class ReportParser(arguments.Parser):
    """A command line with the runs to read and the names to give to priors."""

    def __init__(self, command: str, description: str, examples: Sequence[str]) -> None:
        super().__init__(command, description, examples)
        self.add_argument("paths", nargs="*", type=Path, metavar="PATH", help=PATHS)
        self.add_outputs()
        called = "what to call a prior, such as --name='cifar10 byol 61d4788a=CF10-T'; may be given again"
        self.add_argument(
            "--name", dest="names", action="append", default=[], type=prior_and_name, metavar="PRIOR=NAME", help=called
        )

    def add_protocol(self, default: str) -> None:
        """--protocol and --network; `default` is what the help says."""
        self.add_argument("--protocol", default=None, help=f"{', '.join(PROTOCOLS)} or all (default: {default})")
        networks = (*NETWORKS, "all")
        self.add_argument("--network", default="all", type=Choice("--network", networks), help=", ".join(networks))


def results_at(given: argparse.Namespace, problems: list[str]) -> list[Result]:
    """Read the runs at the given paths, with the priors named as asked. What cannot be read goes to `problems`."""
    return results_of(collect(given.paths or [given.outputs], problems), dict(given.names))


def some_of(option: str, names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A type for argparse: several of `names`, with commas between them."""
    check = Choice(option, names)
    return lambda text: tuple(check(name) for name in text.split(","))
