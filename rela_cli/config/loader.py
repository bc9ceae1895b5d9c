"""Hydra's config loader with rules of ours, for every tree that is composed: by us, by hydra.main, by a launcher.

Text keys keep what was typed (`text`). And what a preset sets for a part holds for the part that it was written for:
`experiment=table1_cifar10 switch=never` chooses a switch that has no key `constants`, which the preset sets. Where the
part that is chosen lacks one of these keys, all of the preset's keys for that part fall away, and `fallen` says so.
Where it has them all they hold, and `kept` says that: a rate that suits adamw is seldom one for sgd. And each member of
an ensemble of priors becomes what that prior's yaml says (`members`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, StringNode, ValueNode, open_dict

from rela_cli.config.members import as_dict, resolve_members
from rela_cli.config.schema import GROUPS, OWN_KEYS, PART_GROUPS
from rela_cli.config.text import as_typed, holds_text, quoted_values, split_words
from rela_cli.config.yaml_files import YamlFiles
from rela_cli.errors import ConfigError, did_you_mean

PRESETS = ("experiment", "sweep")


@dataclass(frozen=True)
class Fallen:
    """What a preset sets for a part that is not the one chosen, and that lacks one of these keys."""

    preset: str
    group: str
    written_for: str
    chosen: str
    values: dict[str, Any]

    def __str__(self) -> str:
        keys = ", ".join(f"{self.group}.{key}={value}" for key, value in self.values.items())
        return f"{self.preset} sets {keys} for {self.group}={self.written_for}; {self.outcome}"

    @property
    def outcome(self) -> str:
        """What becomes of it."""
        return f"with {self.group}={self.chosen} that falls away"


class Kept(Fallen):
    """What a preset sets for a part that is not the one typed, and that has all of these keys."""

    @property
    def outcome(self) -> str:
        return f"{self.group}={self.chosen} takes that, too, unless you say something else"


composed: dict[tuple[str | None, ...], DictConfig] = {}  # trees of parts alone, which are only read, by what made them


class Loader(ConfigLoaderImpl):
    """A config loader; `fallen` and `kept` are about the tree that it composed last."""

    def __init__(self, config_search_path: ConfigSearchPath, config_name: str | None = None) -> None:
        super().__init__(config_search_path)
        self.repository = YamlFiles(config_search_path)
        self.config_name = config_name
        self.fallen: list[Fallen] = []
        self.kept: list[Kept] = []
        self.words: list[str] = []  # the overrides of that tree
        self.standing: dict[str, dict[str, str | None]] = {}  # the parts that a preset by itself stands on

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Hydra's own, of overrides whose text is as it was typed.

        Raises:
            ConfigError: a preset sets a key that the part which it was written for does not have.
        """
        self.config_name = config_name
        compose: Callable[[Sequence[str]], DictConfig] = lambda words: super(Loader, self).load_configuration(  # noqa: E731
            config_name, list(words), run_mode, from_shell, validate_sweep_overrides
        )
        words = self.words = self.typed(overrides)
        if deleted := [word for word in words if word.startswith("~") and "." in word]:
            compose([word for word in words if word not in deleted])
            gone = {f"~{fallen.group}.{key}" for fallen in self.fallen for key in fallen.values}
            words = [word for word in words if word not in gone]
        tree = compose(words)
        if run_mode is RunMode.MULTIRUN:
            type_params(tree)
        else:
            found = self.fallen, self.kept
            resolve_members(
                tree, lambda: self.get_group_options("prior"), lambda name: self.parts([f"prior={name}"]).prior
            )
            self.fallen, self.kept = found
        return tree

    # ---------------------------------------------------------------------------------------------------- text

    def typed(self, words: Sequence[str]) -> list[str]:
        """The overrides with text in quotes where Hydra would make something else of it."""
        pairs = (word.partition("=")[::2] for word in words)
        chosen = [f"{key}={split_words(value)[0]}" for key, value in pairs if key in GROUPS or "/" in key]
        return [as_typed(word, lambda key: is_text(node_at(self.parts(chosen), key))) for word in words]

    def parts(self, chosen: list[str]) -> DictConfig:
        """The tree of some choices alone; it is only read."""
        known = (str(self.config_search_path), self.config_name, *chosen)
        if known not in composed:
            composed[known] = super().load_configuration(self.config_name, chosen, RunMode.MULTIRUN, True, False)
        return composed[known]

    # ------------------------------------------------------------------------------------------------- presets

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        """Hydra's own, with the presets' keys for parts looked through first."""
        self.fallen = list(self.misfits(defaults, repo))
        self.kept = list(self.strangers(defaults, repo))
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        """One yaml; a preset without what falls away."""
        loaded = super()._load_single_config(default, repo)
        gone = [fallen.group for fallen in self.fallen if fallen.preset == choice_of(default)]
        if not gone:
            return loaded
        assert isinstance(loaded.config, DictConfig)
        kept = [str(key) for key in loaded.config if key not in (*gone, "defaults")]
        return replace(loaded, config=OmegaConf.masked_copy(loaded.config, kept))

    def misfits(self, defaults: Sequence[ResultDefault], repo: Any) -> Iterator[Fallen]:
        """The groups for which a preset sets a key that the chosen part does not have, preset by preset.

        Raises:
            ConfigError: the part chosen is the one that the preset was written for; or `check_params`.
        """
        for default in defaults:
            content = repo.load_config(default.config_path).config if group_of(default) in PRESETS else None
            check_params(choice_of(default), content)
            for group in PART_GROUPS:
                if isinstance(node := node_at(content, group), DictConfig):
                    files = [other for other in defaults if group_of(other) == group]
                    own = {str(key) for file in files for key in repo.load_config(file.config_path).config}
                    values = as_dict(node)
                    lacking = [key for key in values if key not in own | {*OWN_KEYS}]
                    if files and lacking:
                        yield self.misfit(choice_of(default), choice_of(files[-1]), values, lacking[0], own)

    def strangers(self, defaults: Sequence[ResultDefault], repo: Any) -> Iterator[Kept]:
        """What a preset sets for another part than the one that is typed, and what holds because nothing else is."""
        said = {word.partition("=")[0].lstrip("~") for word in self.words}  # by the line, then by a preset on top
        typed = said & {*PART_GROUPS}
        chosen = {group_of(default): choice_of(default).partition("=")[2] for default in defaults}
        gone = {(fallen.preset, fallen.group) for fallen in self.fallen}
        for default in reversed(defaults):
            preset = choice_of(default)
            content = repo.load_config(default.config_path).config if group_of(default) in PRESETS else None
            for group in sorted(typed & chosen.keys()) if content else ():
                node = node_at(content, group)
                if not isinstance(node, DictConfig) or (preset, group) in gone:
                    continue
                values = {key: value for key, value in as_dict(node).items() if f"{group}.{key}" not in said}
                said |= {f"{group}.{key}" for key in values}
                if values and (meant := str(self.stands_on(preset)[group])) != chosen[group]:
                    yield Kept(preset, group, meant, chosen[group], values)

    def stands_on(self, preset: str) -> dict[str, str | None]:
        """The parts that a preset by itself chooses."""
        if preset not in self.standing:
            words = [as_typed(preset, lambda key: False)]
            found = self.compute_defaults_list(self.config_name, words, RunMode.RUN)
            self.standing[preset] = found.overrides.known_choices
        return self.standing[preset]

    def misfit(self, preset: str, part: str, values: dict[str, Any], lacking: str, own: set[str]) -> Fallen:
        """What falls away of a preset for one group, if the preset was written for another part."""
        group, _, chosen = part.partition("=")
        written_for = self.stands_on(preset)[group]
        if written_for == chosen:
            raise ConfigError(f"{preset}: unknown key {group}.{lacking} for {part}{did_you_mean(lacking, sorted(own))}")
        return Fallen(preset, group, str(written_for), chosen, values)


def group_of(default: ResultDefault) -> str:
    """`learner` of learner/resnet18."""
    return (default.config_path or "").rpartition("/")[0]


def choice_of(default: ResultDefault) -> str:
    """`learner=resnet18` of learner/resnet18."""
    group, _, choice = (default.config_path or "").rpartition("/")
    return f"{group}={choice}"


def node_at(tree: Any, key: str) -> Any:
    """The node under a dotted key, unresolved; None where there is none."""
    for step in key.split("."):
        is_open = isinstance(tree, DictConfig) and isinstance(tree._value(), dict)
        tree = tree._get_node(step, validate_access=False) if is_open else None
    return tree


def is_text(node: Any) -> bool:
    """Whether a key of somebody's own part, or of Hydra, holds text by its type or by its default."""
    if isinstance(node, StringNode):
        return True
    return isinstance(node, ValueNode) and not node._is_interpolation() and isinstance(node._value(), str)


def type_params(tree: DictConfig) -> None:
    """What a sweep's yaml varies, with text in quotes like that of the command line."""
    params: Any = OmegaConf.select(tree, "hydra.sweeper.params") or {}
    for key in [key for key in params if holds_text(str(key))]:
        with open_dict(params):
            params[key] = quoted_values(params[key])


def check_params(preset: str, content: Any) -> None:
    """Text that a sweep's yaml varies is text to YAML.

    Raises:
        ConfigError: YAML has read it as a number.
    """
    params: Any = node_at(content, "hydra.sweeper.params")
    for key, value in params.items() if isinstance(params, DictConfig) else ():
        if holds_text(str(key)) and not isinstance(value, str):
            raise ConfigError(f"{preset} varies {key!s} over {value}, which is a number to YAML: put it in quotes")
