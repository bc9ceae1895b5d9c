"""The config of a command line, the cells of a sweep, and the call of Hydra itself.

Each command line is composed and checked once before any work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal import hydra as hydra_internal
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rela_cli.config.diagnose import CellOverrides, allowed_names, problems_of, problems_of_cells
from rela_cli.config.loader import Loader
from rela_cli.config.overrides import CommandLine, without_plus
from rela_cli.config.schema import CONF_DIR, Config
from rela_cli.config.trees import Trees, as_dict, checked_config, dotted, hydra_message, is_hydra_1_4
from rela_cli.config.without_effect import overruled, without_effect
from rela_cli.distributed import ranks
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.store.notices import warn

CHECKED_CELLS = 1000  # of a larger sweep the rest is checked when its turn comes


def compose(overrides: Sequence[str] = (), config_dir: str | None = None) -> Config:
    """The config that `rela train` would see for these overrides.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    flags: dict[str, str | None] = {"--config-dir": config_dir} if config_dir else {}
    return Composer(CommandLine(flags, tuple(map(without_plus, overrides)))).check()


def hand_over(
    command: str, line: CommandLine, task: Callable[[DictConfig], Any], *extra: str, checked: Composer | None = None
) -> None:
    """Run `hydra.main` as if it had been called as `rela <command>`; its exceptions reach the caller.

    Hydra composes once to read hydra.mode and once more to run. A composer that has `checked` the line knows the mode.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    keywords = {} if is_hydra_1_4() else {"version_base": "1.3"}
    before = sys.argv, hydra_internal.ConfigLoaderImpl  # type: ignore[attr-defined]
    sys.argv = [f"rela {command}", *extra, *line.words]
    hydra_internal.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]
    try:
        with unchecked_help(), known_mode(checked):
            hydra.main(config_path=str(CONF_DIR), config_name="rela", **keywords)(task)()
    finally:
        sys.argv, hydra_internal.ConfigLoaderImpl = before  # type: ignore[attr-defined]


@contextmanager
def known_mode(checked: Composer | None) -> Iterator[None]:
    """Hydra asks the composer for hydra.mode, if there is one; a Hydra that does not ask at all is left alone."""
    before = vars(hydra_internal.Hydra).get("get_mode")
    if checked and before:
        hydra_internal.Hydra.get_mode = lambda *_, **__: checked.mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before:
            hydra_internal.Hydra.get_mode = before  # type: ignore[method-assign]


@contextmanager
def unchecked_help() -> Iterator[None]:
    """Python 3.14 checks the help of an option as it is added; one of Hydra 1.3's is no text before it is shown."""
    parsers: Any = argparse._ActionsContainer
    check = getattr(parsers, "_check_help", None)
    if check:
        parsers._check_help = lambda *_: None
    try:
        yield
    finally:
        if check:
            parsers._check_help = check


class Composer:
    """What one command line means."""

    def __init__(self, line: CommandLine) -> None:
        self.line, self.trees = line, Trees(line)
        self.mode: RunMode | None = None  # what hydra.mode says, once the line has been checked
        self.notes = self.trees.notes  # what presets lose or keep, and what has no effect, once

    def say_notes(self) -> None:
        """What falls away of a preset or holds for another part, and what has no effect, a line each on stderr."""
        is_told = ranks.MEETING in os.environ  # whoever has started this rank has said them
        for note in self.notes if ranks.is_first() and not is_told else ():
            warn(note)

    def check(self) -> Config:
        """The config of a single run.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        words = self.line.overrides
        try:
            tree, node = self.trees.load(words)
        except Exception as error:
            raise ConfigError("\n".join(self.problems() or [hydra_message(error)])) from error
        self.mode = node.mode
        if node.mode == RunMode.MULTIRUN or node.runtime.choices.get("sweep"):
            raise ConfigError("this is a sweep; say -m: rela train -m " + " ".join(words))
        config = checked_config(tree, node, words)
        self.notes.update(dict.fromkeys(without_effect(words, config)))
        return config

    def problems(self) -> list[str]:
        """What is wrong with the command line, one problem each."""
        return problems_of(self.trees, self.line.overrides)

    def cells(self) -> tuple[list[CellOverrides], Config]:
        """The cells of a sweep, each composed and validated, and the first one's config.

        Raises:
            ConfigError: with every problem found, one a line; then no cell has been started.
        """
        words, node = self.line.overrides, self.sweep_node()
        if node.sweeper._target_.rpartition(".")[2] != "BasicSweeper":
            raise ConfigError(f"rela sweeps with Hydra's basic sweeper; {node.sweeper._target_} is not supported")
        fixed = list(node.overrides.hydra)
        presets = [f"{key}={value}" for key, value in (node.sweeper.params or {}).items()]
        cells = self._split([*presets, *node.overrides.task])
        if not cells:
            raise ConfigError("this sweep has no cells: one of its values is an empty list or a glob without a match")
        problems = problems_of_cells(self.trees, [(*fixed, *cell) for cell in cells[:CHECKED_CELLS]])
        if problems:
            raise ConfigError("\n".join(problems))
        self.notes.update(dict.fromkeys(overruled(words)))
        return cells, checked_config(*self.trees.load((*fixed, *cells[0])), cells[0])

    def sweep_node(self) -> DictConfig:
        """Hydra's own node of a sweep.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        words = self.line.overrides
        try:
            return self.trees.load(words, RunMode.MULTIRUN)[1]
        except Exception as error:
            fixed = [word for word in words if word.startswith("hydra")]
            cells = [(*fixed, *cell) for cell in self._split(words)]
            raise ConfigError("\n".join(problems_of_cells(self.trees, cells) or [hydra_message(error)])) from error

    def launcher(self) -> dict[str, Any]:
        """A sweep's launcher as it is composed: its class and its settings, those that refer to others left out."""
        node = self.trees.load(self.line.overrides, RunMode.MULTIRUN)[1].launcher
        return {key: value for key, value in as_dict(node).items() if not OmegaConf.is_interpolation(node, key)}

    def _split(self, words: Sequence[str]) -> list[CellOverrides]:
        """Hydra's own product of all values; Hydra's own keys are not swept over."""
        try:
            task = [override for override in self.trees.parse(words) if not override.is_hydra_override()]
            return [tuple(cell) for cell in BasicSweeper.split_arguments(task, None)[0]]
        except OverrideParseException:
            raise ConfigError("\n".join(problems_of(self.trees, self.without_sweeps(words)))) from None
        except HydraException as error:
            single = [word for word in words if "," not in word]  # Hydra has refused one of these: sweeps are well here
            raise ConfigError("\n".join(problems_of(self.trees, single) or [hydra_message(error)])) from error

    def without_sweeps(self, words: Sequence[str]) -> list[str]:
        """The words that are no sweep over values; those that cannot be read are among them."""
        kept = []
        for word in words:
            try:
                is_sweep = self.trees.parse([word])[0].is_sweep_override()
            except OverrideParseException:
                is_sweep = False
            kept += [] if is_sweep else [word]
        return kept

    def keys(self, group: str, choice: str) -> set[str]:
        """The keys of a choice's yaml, inner ones with dots.

        Raises:
            ConfigError: there is no such choice, with the nearest name.
        """
        options = self.trees.options(group)
        if choice not in options:
            raise ConfigError(f"unknown {group} {choice}{did_you_mean(choice, options)}{allowed_names(options)}")
        return set(dotted(as_dict(self.trees.load([f"{group}={choice}"])[0][group])))
