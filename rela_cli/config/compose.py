"""Everything that touches Hydra: compose a tree, split a sweep into cells, say what is wrong, hand over to it.

Hydra stops at the first wrong override and its advice ("use +key=...") would not help here. So each command line
is composed once before any work, and on failure override by override, to name every mistake at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import version
from hydra._internal import hydra as hydra_internal
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rela_cli.config.environment import hidden
from rela_cli.config.loader import Loader
from rela_cli.config.overrides import CommandLine, without_plus
from rela_cli.config.reading import from_tree
from rela_cli.config.schema import CONF_DIR, Config
from rela_cli.config.text import holds_text
from rela_cli.config.without_effect import of_other_protocols, of_sweeps, overruled
from rela_cli.distributed import ranks
from rela_cli.errors import ConfigError, nearest
from rela_cli.store.notices import warn

CHECKED_CELLS = 1000  # of a larger sweep the rest is checked when its turn comes
SHOWN_CELLS = 20  # failing cells that are looked into
EXTRAS = {"joblib": "parallel", "submitit_slurm": "slurm", "submitit_local": "slurm", "slurm": "slurm"}

Cell = tuple[str, ...]


def compose(overrides: Sequence[str] = (), config_dir: str | None = None) -> Config:
    """The config that `rela train` would see for these overrides.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    flags: dict[str, str | None] = {"--config-dir": config_dir} if config_dir else {}
    return Composer(CommandLine(flags, tuple(map(without_plus, overrides)))).check()


def hand_over(command: str, line: CommandLine, task: Callable[[DictConfig], Any], *extra: str) -> None:
    """Run `hydra.main` as if it had been called as `rela <command>`; its exceptions reach the caller."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    keywords = {} if _is_hydra_1_4() else {"version_base": "1.3"}
    before = sys.argv, hydra_internal.ConfigLoaderImpl  # type: ignore[attr-defined]
    sys.argv = [f"rela {command}", *extra, *line.words]
    hydra_internal.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]
    try:
        hydra.main(config_path=str(CONF_DIR), config_name="rela", **keywords)(task)()
    finally:
        sys.argv, hydra_internal.ConfigLoaderImpl = before  # type: ignore[attr-defined]


def config_of(tree: DictConfig, overrides: Sequence[str]) -> Config:
    """The validated config of a composed tree (without its hydra node).

    Raises:
        ConfigError: with every problem found, one a line.
    """
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(hidden(_first_line(error), tree)) from error
    assert isinstance(plain, dict)
    if plain.get("allow") and not any(word.startswith("allow=") for word in overrides):
        raise ConfigError(f"allow={plain['allow']} stands in a yaml; only the command line can allow a package")
    try:
        return from_tree({str(key): value for key, value in plain.items()})
    except ConfigError as error:
        raise ConfigError(hidden(str(error), tree)) from None


class Composer:
    """Hydra's own config loader over rela's conf/ and the user's --config-dir."""

    def __init__(self, line: CommandLine) -> None:
        self.notes: dict[str, None] = {}  # what becomes of a preset, what has no effect, once
        if not _is_hydra_1_4():
            version.setbase("1.3")
        setup_globals()
        self.line = line
        line.open_imports()
        self.config_name = line.flags.get("--config-name") or "rela"
        path = create_config_search_path(line.flags.get("--config-path") or str(CONF_DIR))
        if line.config_dir:
            if not line.config_dir.is_dir():
                raise ConfigError(f"--config-dir {line.config_dir} is not a folder")
            after_ours = SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{line.config_dir.resolve()}", anchor=after_ours)
        self.loader = Loader(path, self.config_name)

    def say_notes(self) -> None:
        """What falls away of a preset or holds for another part, and what has no effect, a line each on stderr."""
        for note in self.notes if ranks.is_first() else ():
            warn(note)

    # ------------------------------------------------------------------------------------------- good cases

    def check(self) -> Config:
        """The config of a single run.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        words = self.line.overrides
        try:
            tree, node = self._load(words)
        except Exception as error:
            raise ConfigError("\n".join(self.problems(words) or [_first_line(error)])) from error
        if node.mode == RunMode.MULTIRUN or node.runtime.choices.get("sweep"):
            raise ConfigError("this is a sweep; say -m: rela train -m " + " ".join(words))
        config = self._checked(tree, node, words)
        idle = (*overruled(words), *of_sweeps(words), *of_other_protocols(words, config.probe.protocols))
        self.notes |= dict.fromkeys(idle)
        return config

    def plan(self) -> tuple[list[Cell], Config]:
        """The cells of a sweep, each composed and validated, and the first one's config.

        Raises:
            ConfigError: with every problem found, one a line; then no cell has been started.
        """
        words = self.line.overrides
        try:
            node = self._load(words, RunMode.MULTIRUN)[1]
        except Exception as error:
            fixed = [word for word in words if word.startswith("hydra")]
            cells = [(*fixed, *cell) for cell in self._split(words)]
            raise ConfigError("\n".join(self._problems_of(cells) or [_first_line(error)])) from error
        if node.sweeper._target_.rpartition(".")[2] != "BasicSweeper":
            raise ConfigError(f"rela sweeps with Hydra's basic sweeper; {node.sweeper._target_} is not supported")
        fixed = list(node.overrides.hydra)
        presets = [f"{key}={value}" for key, value in (node.sweeper.params or {}).items()]
        cells = self._split([*presets, *node.overrides.task])
        if not cells:
            raise ConfigError("this sweep has no cells: one of its values is an empty list or a glob without a match")
        problems = self._problems_of([(*fixed, *cell) for cell in cells[:CHECKED_CELLS]])
        if problems:
            raise ConfigError("\n".join(problems))
        self.notes |= dict.fromkeys(overruled(words))
        return cells, self._checked(*self._load((*fixed, *cells[0])), cells[0])

    def launcher(self) -> dict[str, Any]:
        """A sweep's launcher as it is composed: its class and its settings, those that refer to others left out."""
        node = self._load(self.line.overrides, RunMode.MULTIRUN)[1].launcher
        return {key: value for key, value in _plain(node).items() if not OmegaConf.is_interpolation(node, key)}

    def _load(self, words: Sequence[str], mode: RunMode = RunMode.RUN) -> tuple[DictConfig, DictConfig]:
        """The composed tree, and Hydra's own node taken out of it."""
        tree = self.loader.load_configuration(self.config_name, list(words), mode)
        self.notes |= dict.fromkeys(map(str, (*self.loader.fallen, *self.loader.kept))) if mode is RunMode.RUN else {}
        with open_dict(tree):
            return tree, tree.pop("hydra")

    def _checked(self, tree: DictConfig, node: DictConfig, words: Sequence[str]) -> Config:
        config = config_of(tree, words)
        foreign = [t for t in _targets(OmegaConf.to_container(node)) if _package(t) not in config.allow]
        if foreign:
            raise ConfigError(
                f"a yaml wants Hydra to run {foreign[0]}; if you trust it say allow=[{_package(foreign[0])}]"
            )
        return config

    def _split(self, words: Sequence[str]) -> list[Cell]:
        """Hydra's own product of all values; Hydra's own keys are not swept over."""
        try:
            parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(self.loader.typed(words))
            task = [override for override in parsed if not override.is_hydra_override()]
            return [tuple(cell) for cell in BasicSweeper.split_arguments(task, None)[0]]
        except OverrideParseException:
            raise ConfigError("\n".join(self.problems(words))) from None
        except HydraException as error:
            raise ConfigError(_first_line(error)) from error

    def keys(self, group: str, choice: str) -> set[str]:
        """The keys of a choice's yaml, inner ones with dots.

        Raises:
            ConfigError: there is no such choice, with the nearest name.
        """
        options = self._options(group)
        if choice not in options:
            raise ConfigError(f"unknown {group} {choice}{nearest(choice, options)}{_allowed(options)}")
        return set(_dotted(_plain(self._load([f"{group}={choice}"])[0][group])))

    # ---------------------------------------------------------------------------------------- what is wrong

    def _problems_of(self, cells: Sequence[Cell]) -> list[str]:
        """Every problem of these cells once, those of single cells with the cell's name."""
        seen: dict[str, Cell] = {}
        bad = 0
        for cell in cells:
            try:
                self._checked(*self._load(cell), cell)
            except Exception as error:
                bad += 1
                for problem in self.problems(cell) or [_first_line(error)]:
                    seen.setdefault(problem, cell)
            if bad == SHOWN_CELLS:
                break
        return [
            problem if bad == len(cells) else f"{problem} (cell {' '.join(cell)})" for problem, cell in seen.items()
        ]

    def problems(self, words: Sequence[str]) -> list[str]:
        """What is wrong with each override by itself, then with all the good ones together."""
        try:
            self._load(())
        except Exception as error:
            return [_first_line(error)]
        found: list[str] = []
        good: list[str] = []
        for word in sorted(words, key=self._is_value):  # groups first: a part's keys depend on the part
            try:
                self._load([*good, word])
            except ConfigError as error:  # our loader's: what a preset says
                found.append(str(error))
            except Exception as error:
                found.append(self._explain(word, good, error))
            else:
                good.append(word)
        try:
            self._checked(*self._load(good), words)
        except ConfigError as error:
            found += str(error).splitlines()
        return found

    def _is_value(self, word: str) -> bool:
        return not self._options(word.partition("=")[0])

    def _options(self, group: str) -> list[str]:
        return sorted(self.loader.get_group_options(group)) if group.replace("/", "").isidentifier() else []

    def _explain(self, word: str, good: Sequence[str], error: Exception) -> str:
        try:
            override = OverridesParser.create(config_loader=self.loader).parse_overrides(self.loader.typed([word]))[0]
        except OverrideParseException as unreadable:
            return _unreadable(word, unreadable)
        key, options = override.key_or_group, self._options(override.key_or_group)
        if override.is_sweep_override():
            one = f"; if it is one text quote it: '{key}=\"{word.partition('=')[2]}\"'" if holds_text(key) else ""
            return f"{word} is several values; to sweep over them say -m: rela train -m {word}{one}"
        if options and not override.is_delete():
            return _unknown_option(key, override, options)
        tree, node = self._load(good)
        known = {**_plain(tree), "hydra": _plain(node)}
        return self._unknown_key(key, known) or f"{word}: {_first_line(error)}"

    def _unknown_key(self, key: str, known: Mapping[str, Any]) -> str:
        """Where the path of a key leaves the tree, with the nearest name there; empty when it does not."""
        here: Any = known
        path: list[str] = []
        for step in key.split("."):
            if not isinstance(here, Mapping):
                return f"unknown key {key}: {'.'.join(path)} is a single value"
            if step not in here:
                return _unknown_step(key, path, step, here) + self._homes(path, step)
            here = here[step]
            path.append(step)
        return ""

    def _homes(self, path: Sequence[str], step: str) -> str:
        """Which other parts of the same group have this key."""
        if len(path) != 1 or path[0] == "hydra":
            return ""
        homes = []
        for option in self._options(path[0]):
            tree, _ = self._load([f"{path[0]}={option}"])
            if step in tree[path[0]]:
                homes.append(f"{path[0]}={option}")
        return f"; {', '.join(homes)} has it" if homes else ""


def _unreadable(word: str, error: Exception) -> str:
    if "=" not in word and not word.startswith("~"):
        if Path(word).expanduser().is_dir():
            return f"cannot read {word}: for the images in this folder say dataset=image_folder dataset.root={word}"
        return f"cannot read {word}: settings are key=value; to see what there is: rela train --help"
    return f"cannot read {word} ({_first_line(error)}); quote a value with special characters: 'key=\"a, b\"'"


def _unknown_option(group: str, override: Override, options: Sequence[str]) -> str:
    value = override.value()
    if not isinstance(value, str):
        return f"{group} takes one name, not {'null' if value is None else value}. Allowed: {', '.join(options)}"
    if group == "hydra/launcher" and value in EXTRAS:
        return f"{group}={value} is not installed; it comes with: pip install 'rela-cli[{EXTRAS[value]}]'"
    return f"unknown {group} {value}{nearest(value, options)}{_allowed(options)}"


def _unknown_step(key: str, path: Sequence[str], step: str, here: Mapping[str, Any]) -> str:
    names = [str(name) for name in here if name not in ("_target_", "name")] + ([] if path else ["experiment", "sweep"])
    close = nearest(step, [name for name in names if name != "hydra"])
    owner = f" for {path[0]}={here['name']}" if len(path) == 1 and "name" in here else ""
    prefix = ".".join(path) + "." if path else ""
    close = close.replace("did you mean ", f"did you mean {prefix}")
    return f"unknown key {key}{owner}{close}{_allowed(names) if path or not close else ''}"


def _allowed(names: Sequence[str]) -> str:
    return f" (allowed: {', '.join(names)})"


def _first_line(error: BaseException) -> str:
    """The part of a Hydra message that says what happened, without its advice."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = getattr(cause, "full_key", None)
    return (f"{key}: " if key else "") + (lines[0] if lines else type(cause).__name__)


def _plain(tree: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(tree)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _targets(node: Any) -> Iterator[str]:
    """Every class or function that a yaml asks Hydra or logging to call, besides their own."""
    if isinstance(node, list):
        for item in node:
            yield from _targets(item)
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("_target_", "()", "class") and isinstance(value, str):
                if _package(value) not in ("hydra", "hydra_plugins", "logging", "colorlog"):
                    yield value
            else:
                yield from _targets(value)


def _package(target: str) -> str:
    return target.partition(".")[0]


def _is_hydra_1_4() -> bool:
    return tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)
