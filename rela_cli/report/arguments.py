"""The command lines of `rela table`, `rela plot` and `rela report`: what they have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rela_cli.errors import ConfigError, nearest
from rela_cli.report.compare import NETWORKS, PROTOCOLS

PATHS = "outputs folder, folder of runs, run folder or result.json (default: outputs)"


class Parser(argparse.ArgumentParser):
    """Errors leave the way all others of rela do."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"rela {command}", description=description, allow_abbrev=False)
        self.add_argument("paths", nargs="*", type=Path, metavar="PATH", help=PATHS)

    def error(self, message: str) -> NoReturn:
        unknown = next((word for word in message.split() if word.startswith("--")), "")
        hint = nearest(unknown, self._option_string_actions) if "unrecognized" in message else ""
        raise ConfigError(f"{message}{hint}; `{self.prog} --help` shows the usage")

    def add_protocol(self, default: str) -> None:
        """--protocol and --network; `default` is what the help says."""
        self.add_argument("--protocol", default=None, help=f"{', '.join(PROTOCOLS)} or all (default: {default})")
        networks = (*NETWORKS, "all")
        self.add_argument("--network", default="all", type=one_of("--network", networks), help=", ".join(networks))


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
