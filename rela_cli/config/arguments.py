"""The command lines of all commands: one grammar, one parser.

What a command itself does is a --flag. What a run is composed of is key=value (overrides.py). The folder of runs and
caches is `--outputs FOLDER` or `paths.outputs=FOLDER` for every command. Older spellings go on, and a line on stderr
says the new one. --help helps wherever it stands, and nothing is done then.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.store.disk import OUTPUTS
from rela_cli.store.notices import warn

OFF = ("", "0", "false", "no", "off")
Names = Callable[[], Iterable[str]]


class Formatter(argparse.HelpFormatter):
    """Paragraphs are filled; those with indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n " in f"\n{p}" else textwrap.fill(p, width) for p in paragraphs)


class Parser(argparse.ArgumentParser):
    """The command line of one command. Errors leave the way all others of rela do."""

    def __init__(self, command: str, description: str, examples: Sequence[str] = (), more: str = "") -> None:
        shown = "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else ""
        super().__init__(
            prog=f"rela {command}",
            description=description,
            epilog="\n\n".join(filter(None, (more, shown))),
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self.offers: dict[str, Names] = {}  # what the shell may complete a value with, by the argument's name

    def error(self, message: str) -> NoReturn:
        rest = message.partition("unrecognized arguments: ")[2]
        unknown = "--" + rest.partition(" ")[0].partition("=")[0].lstrip("-")
        hint = did_you_mean(unknown, self._option_string_actions) if rest else ""
        if rest and not rest.startswith("-"):
            message = f"cannot read {rest}"
        raise ConfigError(f"{message}{hint}; `{self.prog} --help` shows the usage")

    def add_outputs(self) -> None:
        """--outputs, the folder of runs and caches."""
        help = "the folder of runs and caches; the same as paths.outputs=FOLDER (default: outputs)"
        self.add_argument("--outputs", type=Path, default=None, metavar="FOLDER", help=help)

    def add_old_outputs(self) -> None:
        """The older spelling of --outputs FOLDER, which was FOLDER."""
        self.add_argument("old_outputs", nargs="?", type=Path, help=argparse.SUPPRESS)

    def add(self, *names: str, offers: Names | None = None, **how: Any) -> None:
        """An argument, and what the shell may complete it with."""
        action = self.add_argument(*names, **how)
        if offers:
            self.offers[action.dest] = offers

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; `outputs`, where a command has it, is a folder in any case."""
        self.help_if_asked(words)
        given = self.parse_intermixed_args([new for word in words for new in self.spelled(word)])
        if getattr(given, "old_outputs", None):
            is_now(f"{self.prog} {given.old_outputs}", f"{self.prog} --outputs {given.old_outputs}")
            given.outputs = given.outputs or given.old_outputs
        if "outputs" in given:
            given.outputs = given.outputs or default_outputs()
        return given

    def help_if_asked(self, words: Sequence[str]) -> None:
        """Help, wherever it is asked for; then nothing else is done."""
        if {"-h", "--help"} & set(words):
            self.print_help()
            self.exit()

    def spelled(self, word: str) -> list[str]:
        """A word as it is spelled today: a flag's older spelling was key=value."""
        key, equals, value = word.partition("=")
        if not equals or key.startswith("-"):
            return [word]
        flag = "--" + key.removeprefix("paths.").replace("_", "-")
        action = self._option_string_actions.get(flag)
        if action is None:
            return [word]
        new = [] if action.nargs == 0 and value.lower() in OFF else [flag] if action.nargs == 0 else [f"{flag}={value}"]
        if key != "paths.outputs":
            is_now(word, " ".join(new) or f"without {flag}")
        return new


class Choice:
    """A type for argparse: one of `names`."""

    def __init__(self, option: str, names: Sequence[str]) -> None:
        self.option, self.names = option, names

    def __call__(self, name: str) -> str:
        if name not in self.names:
            hint = did_you_mean(name, self.names)
            raise ConfigError(f"{self.option}={name} must be one of {', '.join(self.names)}{hint}")
        return name


class WholeNumber:
    """A type for argparse: a whole number from `least` to `most`, or to any height."""

    def __init__(self, option: str, least: int = 1, most: int | None = None) -> None:
        self.option, self.least, self.most = option, least, most

    def __call__(self, text: str) -> int:
        if not text.isdigit() or int(text) < self.least or (self.most is not None and int(text) > self.most):
            bounds = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
            raise ConfigError(f"{self.option}={text} must be a whole number {bounds}")
        return int(text)


class PositiveNumber:
    """A type for argparse: a number above 0 and below `limit`."""

    def __init__(self, option: str, limit: float = math.inf) -> None:
        self.option, self.limit = option, limit

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < self.limit:
            below = f" and below {self.limit:g}" if self.limit < math.inf else ""
            raise ConfigError(f"{self.option}={text} must be a number above 0{below}")
        return value


def folder_path(text: str) -> Path:
    """A type for argparse: a folder that is there, or can be made."""
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, and a folder is needed")
    return path


def is_now(old: str, new: str) -> None:
    """One line on stderr about an older spelling."""
    warn(f"{old} is now {new}")


def default_outputs() -> Path:
    """outputs/ here, or this very folder where it is one and has no other in it."""
    if not OUTPUTS.exists() and Path("runs").is_dir() and Path("cache").is_dir():
        warn("there is no outputs/ here, but this folder is one: it is taken")
        return Path()
    return OUTPUTS
