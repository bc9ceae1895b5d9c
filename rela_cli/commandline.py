"""What stands after `rela train`: Hydra's flags and key=value overrides, told apart before Hydra is imported."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rela_cli.config import GROUPS
from rela_cli.errors import ConfigError, nearest

# Hydra's flags: short form -> long form. `--experimental-rerun` is left out: it unpickles a file.
SHORT = {
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
FLAGS = (*SHORT.values(), "--hydra-help", "--resolve")
VALUED = ("--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--info")
FOLDERS = ("--config-path", "--config-dir")
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
        ConfigError: for a flag that Hydra does not have.
    """
    flags: dict[str, str | None] = {}
    overrides: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word.startswith("-") and word != "-":
            flag, value = _flag(word, rest)
            flags[flag] = os.path.abspath(value) if flag in FOLDERS and value else value
        else:
            overrides.append(without_plus(word))
    return CommandLine(flags, tuple(overrides))


def without_plus(word: str) -> str:
    """Drop `+` and `++`: Hydra's struct mode then decides about the key, whether or not a preset has set it."""
    return re.sub(r"^\+{1,2}(?!\+|hydra[./])", "", word)


def _flag(word: str, rest: deque[str]) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    flag = SHORT.get(name, name)
    if flag not in FLAGS:
        raise ConfigError(_unknown_flag(flag))
    if flag not in VALUED:
        return flag, None
    if flag == "--info" and not equals and (not rest or not rest[0].isalpha()):
        return flag, "all"
    value = value if equals else (rest.popleft() if rest else "")
    if not value:
        raise ConfigError(f"{flag} needs a value after it")
    return flag, value


def _unknown_flag(flag: str) -> str:
    if flag == "--experimental-rerun":
        return f"{flag} is switched off: it would run whatever is in the pickle. Every run folder has a config.yaml"
    keys = ("budget", "epochs", "batch_size", "seed", *GROUPS)
    key = flag.lstrip("-").replace("-", "_").partition(".")[0]
    hint = f"; settings are key=value, without dashes: {key}=..." if key in keys else nearest(flag, FLAGS)
    return f"unknown flag {flag}{hint}\nFlags: {', '.join(sorted(FLAGS))}"
