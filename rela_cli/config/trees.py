"""Config trees, composed by Hydra's own loader over rela's conf/ and the user's --config-dir."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra import version
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rela_cli.config.environment import hidden
from rela_cli.config.loader import Loader
from rela_cli.config.members import as_dict as as_dict
from rela_cli.config.overrides import CommandLine
from rela_cli.config.reading import from_tree
from rela_cli.config.schema import CONF_DIR, Config
from rela_cli.errors import ConfigError


class Trees:
    """Composes the trees of one command line. `notes` holds what presets lose or keep in them, each once."""

    def __init__(self, line: CommandLine) -> None:
        self.notes: dict[str, None] = {}
        if not is_hydra_1_4():
            version.setbase("1.3")
        setup_globals()
        line.open_imports()
        self.config_name = line.flags.get("--config-name") or "rela"
        path = create_config_search_path(line.flags.get("--config-path") or str(CONF_DIR))
        if line.config_dir:
            if not line.config_dir.is_dir():
                raise ConfigError(f"--config-dir {line.config_dir} is not a folder")
            after_ours = SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{line.config_dir.resolve()}", anchor=after_ours)
        self.loader = Loader(path, self.config_name)

    def load(self, words: Sequence[str], mode: RunMode = RunMode.RUN) -> tuple[DictConfig, DictConfig]:
        """The composed tree, and Hydra's own node taken out of it."""
        tree = self.loader.load_configuration(self.config_name, list(words), mode)
        self.notes |= dict.fromkeys(map(str, (*self.loader.fallen, *self.loader.kept))) if mode is RunMode.RUN else {}
        with open_dict(tree):
            return tree, tree.pop("hydra")

    def config(self, words: Sequence[str]) -> Config:
        """The config of some overrides.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        return checked_config(*self.load(words), words)

    def options(self, group: str) -> list[str]:
        """The names of a group's yamls; none where there is no such group."""
        return sorted(self.loader.get_group_options(group)) if group.replace("/", "").isidentifier() else []

    def keys(self, group: str, option: str) -> set[str]:
        """The keys of a part: its yaml's, which is composed only where it stands on other ones."""
        found = self.loader.repository.load_config(f"{group}/{option}")
        is_whole = found is not None and not found.defaults_list and isinstance(found.config, DictConfig)
        part = found.config if found and is_whole else self.load([f"{group}={option}"])[0][group]
        return {str(key) for key in part}

    def parse(self, words: Sequence[str]) -> list[Override]:
        """The overrides as Hydra reads them; its OverrideParseException names the word that it cannot read."""
        return list(OverridesParser.create(config_loader=self.loader).parse_overrides(self.loader.typed(list(words))))


def checked_config(tree: DictConfig, node: DictConfig, words: Sequence[str]) -> Config:
    """The config of a tree, once no yaml makes Hydra call a class that the command line does not allow.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    config = config_of(tree, words)
    foreign = [t for t in called_classes(OmegaConf.to_container(node)) if package_of(t) not in config.allow]
    if foreign:
        raise ConfigError(
            f"a yaml wants Hydra to run {foreign[0]}; if you trust it say allow=[{package_of(foreign[0])}]"
        )
    return config


def config_of(tree: DictConfig, overrides: Sequence[str]) -> Config:
    """The validated config of a composed tree (without its hydra node).

    Raises:
        ConfigError: with every problem found, one a line.
    """
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(hidden(hydra_message(error), tree)) from error
    assert isinstance(plain, dict)
    if plain.get("allow") and not any(word.startswith("allow=") for word in overrides):
        raise ConfigError(f"allow={plain['allow']} stands in a yaml; only the command line can allow a package")
    try:
        return from_tree({str(key): value for key, value in plain.items()})
    except ConfigError as error:
        raise ConfigError(hidden(str(error), tree)) from None


def hydra_message(error: BaseException) -> str:
    """The part of a Hydra message that says what happened, without its advice."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = getattr(cause, "full_key", None)
    return (f"{key}: " if key else "") + (lines[0] if lines else type(cause).__name__)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of a tree, inner ones with dots."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def called_classes(node: Any) -> Iterator[str]:
    """Every class or function that a yaml asks Hydra or logging to call, besides their own."""
    if isinstance(node, list):
        for item in node:
            yield from called_classes(item)
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("_target_", "()", "class") and isinstance(value, str):
                if package_of(value) not in ("hydra", "hydra_plugins", "logging", "colorlog"):
                    yield value
            else:
                yield from called_classes(value)


def package_of(target: str) -> str:
    """The package of a dotted path."""
    return target.partition(".")[0]


def is_hydra_1_4() -> bool:
    """Whether Hydra does without `version_base`."""
    return tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)
