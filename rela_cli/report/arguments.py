"""The command lines of `rela table`, `rela plot` and `rela report`: what they have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rela_cli.errors import ConfigError, nearest
from rela_cli.report.collect import OUTPUTS, collect
from rela_cli.report.compare import NETWORKS, PROTOCOLS, Run, runs_of
from rela_cli.report.names import pair

PATHS = "outputs folder, folder of runs, run folder or result.json (default: outputs)"


class Parser(argparse.ArgumentParser):
    """Errors leave the way all others of rela do."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"rela {command}", description=description, allow_abbrev=False)
        self.add_argument("paths", nargs="*", type=Path, metavar="PATH", help=PATHS)
        called = "what to call a prior, such as --name='cifar10 byol 61d4788a=CF10-T'; may be given again"
        self.add_argument(
            "--name", dest="names", action="append", default=[], type=pair, metavar="PRIOR=NAME", help=called
        )

    def error(self, message: str) -> NoReturn:
        unknown = next((word for word in message.split() if word.startswith("--")), "")
        hint = nearest(unknown, self._option_string_actions) if "unrecognized" in message else ""
        raise ConfigError(f"{message}{hint}; `{self.prog} --help` shows the usage")

    def add_protocol(self, default: str) -> None:
        """--protocol and --network; `default` is what the help says."""
        self.add_argument("--protocol", default=None, help=f"{', '.join(PROTOCOLS)} or all (default: {default})")
        networks = (*NETWORKS, "all")
        self.add_argument("--network", default="all", type=one_of("--network", networks), help=", ".join(networks))


def runs_at(arguments: argparse.Namespace, problems: list[str]) -> list[Run]:
    """The runs at the paths given, their priors called as asked for; what could not be read goes to `problems`."""
    return runs_of(collect(arguments.paths or [OUTPUTS], problems), dict(arguments.names))


def one_of(option: str, names: Sequence[str]) -> Callable[[str], str]:
    """A type for argparse: one of `names`."""

    def check(name: str) -> str:
        if name not in names:
            raise ConfigError(f"{option}={name} must be one of {', '.join(names)}{nearest(name, names)}")
        return name

    return check


def some_of(option: str, names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A type for argparse: several of `names`, with commas between them."""
    check = one_of(option, names)
    return lambda text: tuple(check(name) for name in text.split(","))
