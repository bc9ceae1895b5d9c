"""What stands after `rela train`: Hydra's flags and key=value overrides, told apart before Hydra is imported."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rela_cli.config.arguments import OFF, Parser, is_now
from rela_cli.config.schema import GROUPS
from rela_cli.errors import ConfigError, did_you_mean

# Hydra's flags: short form -> long form. `--experimental-rerun` is left out: it unpickles a file.
LONG_FLAGS = {
    "-h": "--help",
    "-c": "--cfg",
    "-p": "--package",
    "-r": "--run",
    "-m": "--multirun",
    "-sc": "--shell-completion",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "-i": "--info",
}
FLAGS = (*LONG_FLAGS.values(), "--hydra-help", "--resolve")
VALUED = ("--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--info")
FOLDERS = ("--config-path", "--config-dir")
CONFIG_FLAGS = ("--config-path", "--config-name", "--config-dir")  # what commands besides train understand, too
OF_CFG = ("--package", "--resolve")  # what --cfg shows, and how
SHOWING = ("--help", "--hydra-help", "--cfg", "--info", "--shell-completion")


@dataclass(frozen=True)
class CommandLine:
    """Flags by their long names, and overrides without a leading `+`."""

    flags: dict[str, str | None]
    overrides: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """For Hydra. Overrides come first: `--info` would take one of them for its value."""
        flags = [flag if value is None else f"{flag}={value}" for flag, value in self.flags.items()]
        return [*self.overrides, *flags]

    @property
    def shows(self) -> bool:
        """True when Hydra only prints something."""
        return any(flag in self.flags for flag in SHOWING)

    @property
    def is_sweep(self) -> bool:
        return "--multirun" in self.flags or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def config_dir(self) -> Path | None:
        folder = self.flags.get("--config-dir")
        return Path(folder) if folder else None

    @property
    def import_root(self) -> str | None:
        """Where the user's own parts are imported from; only if this command line allows a package."""
        allows = any(word.startswith("allow=") for word in self.overrides)
        return str(self.config_dir.parent) if self.config_dir and allows else None

    def open_imports(self) -> None:
        """Let Python find the user's own parts, in whatever process they are needed."""
        if self.import_root and self.import_root not in sys.path:
            sys.path.append(self.import_root)  # last: it can add packages and replace none


def parse(words: Sequence[str]) -> CommandLine:
    """Flags and overrides in any order.

    Raises:
        ConfigError: for a flag that Hydra does not have, or one that says how --cfg shows a config, without --cfg.
    """
    flags: dict[str, str | None] = {}
    overrides: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word.partition("=")[0] == "--outputs":
            overrides.append(f"paths.outputs={override_value(value_of(word, rest))}")
        elif word.startswith("-") and word != "-":
            flag, value = _flag(word, rest)
            flags[flag] = os.path.abspath(value) if flag in FOLDERS and value else value
        else:
            overrides.append(without_plus(word))
    if alone := [flag for flag in OF_CFG if flag in flags and "--cfg" not in flags]:
        raise ConfigError(f"{alone[0]} belongs to --cfg: it says what of the config is shown; add --cfg job")
    return CommandLine(flags, tuple(overrides))


def without_plus(word: str) -> str:
    """Drop `+` and `++`: Hydra's struct mode then decides about the key, whether or not a preset has set it."""
    return re.sub(r"^\+{1,2}(?!\+|hydra[./])", "", word)


def _flag(word: str, rest: deque[str]) -> tuple[str, str | None]:
    name, equals, _ = word.partition("=")
    flag = LONG_FLAGS.get(name, name)
    if flag not in FLAGS:
        raise ConfigError(_unknown_flag(flag))
    if flag not in VALUED:
        return flag, None
    if flag == "--info" and not equals and (not rest or not rest[0].isalpha()):
        return flag, "all"
    return flag, value_of(word, rest)


def value_of(word: str, rest: deque[str]) -> str:
    """The value of a flag: behind its =, or the next word."""
    name, equals, value = word.partition("=")
    value = value if equals else (rest.popleft() if rest else "")
    if not value:
        raise ConfigError(f"{LONG_FLAGS.get(name, name)} needs a value after it")
    return value


def override_value(value: str) -> str:
    """A folder's name as the value of an override: what would be a list or several values is quoted."""
    if not re.search(r"[,'\"\\\[{(]", value):
        return value
    from rela_cli.config.text import quote  # and Hydra, which is not needed for most names

    return quote(value)


def _unknown_flag(flag: str, known: Sequence[str] = (*FLAGS, "--outputs")) -> str:
    if flag == "--experimental-rerun":
        return f"{flag} is switched off: it would run whatever is in the pickle. Every run folder has a config.yaml"
    keys = ("budget", "epochs", "batch_size", "seed", *GROUPS)
    key = flag.lstrip("-").replace("-", "_").partition(".")[0]
    hint = f"; settings are key=value, without dashes: {key}=..." if key in keys else did_you_mean(flag, known)
    return f"unknown flag {flag}{hint}\nFlags: {', '.join(sorted(known))}"


class RunParser(Parser):
    """The command line of a command that has flags of its own and composes a run: key=value, and Hydra's flags."""

    def __init__(
        self, command: str, description: str, examples: Sequence[str], flags: Sequence[str] = CONFIG_FLAGS
    ) -> None:
        more = (
            "key=value is a setting of a run: `rela train --help` shows them; --config-dir FOLDER has yamls of yours."
        )
        super().__init__(command, description, examples, more)
        self.usage = f"rela {command} [key=value ...] [flags]"
        self.hydra = flags
        self.needs: dict[str, str] = {}  # what is said where an option is missing, by the name of its value
        self.add_outputs()

    def add_to(self, metavar: str, help: str, example: str, type: Callable[[str], object] = str) -> None:
        """--to, without which the command does nothing."""
        self.add("--to", metavar=metavar, help=help, type=type)
        self.needs["to"] = f"say where to: {example}"

    def read_line(self, argv: Sequence[str]) -> tuple[argparse.Namespace, CommandLine]:
        """The command's own options, as their types have them, and the line without them.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        line = parse(self.words(argv))
        actions = {a.dest: a for a in self._option_string_actions.values() if a.dest not in ("help", "outputs")}
        pairs = {key: value for key, equals, value in (word.partition("=") for word in line.overrides) if equals}
        own = {key: text for key, text in pairs.items() if key in actions}
        problems = [message for key, message in self.needs.items() if not own.get(key)]
        given = argparse.Namespace(**{key: action.default for key, action in actions.items()})
        for key, text in own.items():
            try:
                setattr(given, key, option_value(actions[key], text))
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        rest = (word for word in line.overrides if word.partition("=")[0] not in own)
        return given, CommandLine(line.flags, tuple(rest))

    def words(self, argv: Sequence[str]) -> list[str]:
        """The line in one form, for `parse`: the command's own flags, too, are key=value then.

        Raises:
            ConfigError: a flag that this command does not have, or one without its value.
        """
        self.help_if_asked(argv)
        found: list[str] = []
        rest = deque(argv)
        while rest:
            word = rest.popleft()
            name = word.partition("=")[0]
            flag = LONG_FLAGS.get(name, name)
            action = self._option_string_actions.get(flag)
            if flag == "--outputs":
                found.append(f"paths.outputs={override_value(value_of(word, rest))}")
            elif action:
                found.append(f"{action.dest}={1 if action.nargs == 0 else value_of(word, rest)}")
            elif flag in self.hydra:
                found.append(f"{flag}={value_of(word, rest)}" if flag in VALUED else flag)
            elif word.startswith("-") and word != "-":
                raise ConfigError(_unknown_flag(flag, (*self._option_string_actions, *self.hydra)))
            else:
                found += self.settings(word)
        return found

    def settings(self, word: str) -> list[str]:
        """A setting, or the older spelling of a flag."""
        key, _, value = word.partition("=")
        flag = "--" + key.replace("_", "-")
        if "=" in word and flag in self._option_string_actions:
            is_now(word, f"{flag} {value}")
        return [word]


def option_value(action: argparse.Action, text: str) -> Any:
    """The value of an option, from its text."""
    if action.nargs == 0:
        return text.lower() not in OFF
    return action.type(text) if callable(action.type) else text
