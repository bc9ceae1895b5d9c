"""Presets and parts: what a preset sets for a part goes when another part without such keys is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.types import RunMode
from omegaconf import OmegaConf

from rela_cli.config.compose import Composer, compose
from rela_cli.config.loader import choice_of, group_of
from rela_cli.config.overrides import CommandLine, parse
from rela_cli.config.parts import import_target
from rela_cli.config.schema import CONF_DIR, OWN_KEYS, PART_GROUPS, Part
from rela_cli.config.trees import Trees
from rela_cli.errors import ConfigError
from tests.conftest import NO_TORCH, Rela


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


HANDOVER = {"moments": "keep", "warmup_epochs": 0.0}  # of every switch that leaves

SCHEDULE = frozenset({"schedule", "warmup_epochs"})
LOADER = Trees(CommandLine({}, ())).loader
REPOSITORY = CachingConfigRepository(LOADER.repository)


@cache
def keywords(target: str) -> frozenset[str]:
    """What a class takes; those of an optimizer that are the schedule's besides."""
    made = import_target(Part("x", target))
    makers = [cls.__init__ for cls in made.__mro__[:-1]] if inspect.isclass(made) else [made]
    taken = {name for maker in makers for name in inspect.signature(maker).parameters}
    return frozenset(taken) | (SCHEDULE if ".optim." in target else frozenset())


@cache
def yaml_of(path: str | None) -> dict[str, Any]:
    """A yaml as it is written."""
    content = OmegaConf.to_container(REPOSITORY.load_config(str(path)).config)
    assert isinstance(content, dict)
    return content


def composed(defaults: Sequence[ResultDefault], group: str) -> dict[str, Any]:
    """What a group is composed of, by Hydra's order and our loader's rule."""
    fallen = {(f.preset, f.group) for f in LOADER.misfits(defaults, REPOSITORY)}
    keys: dict[str, Any] = {}
    for default in defaults:
        if group_of(default) == group:
            keys |= yaml_of(default.config_path)
        elif group_of(default) == "experiment" and (choice_of(default), group) not in fallen:
            keys |= yaml_of(default.config_path).get(group, {})
    return keys


@pytest.mark.parametrize("preset", names("experiment"))
def test_every_preset_goes_with_every_part(preset: str) -> None:
    listed = LOADER.compute_defaults_list("rela", [f"experiment={preset}"], RunMode.RUN).defaults
    for group in PART_GROUPS:
        ours = [default for default in listed if group_of(default) in (group, "experiment")]
        for choice in names(group):
            swapped = [replace(d, config_path=f"{group}/{choice}") if group_of(d) == group else d for d in ours]
            keys = composed(swapped, group)
            unknown = set(keys) - set(OWN_KEYS) - keywords(keys["_target_"])
            assert not unknown, f"experiment={preset} {group}={choice}"


SWAPS = [
    ("experiment=table1_cifar10 switch=never", "switch", {}),
    ("experiment=table1_cifar10 switch=fixed switch.at=0.25", "switch", {"at": 0.25, **HANDOVER}),
    ("experiment=table1_cifar10 learner=cifar_resnet", "learner", {"depth": 20, "width": 16}),
    ("experiment=table1_cifar10 learner=mobilenet_v3", "learner", {"model": "mobilenet_v3_large"}),
    ("experiment=table1_cifar10 learner=timm ~learner.stem ~learner.width", "learner", {"model": "resnet18d"}),
    (
        "experiment=lightly_cifar10_byol optimizer=adamw optimizer.lr=0.5",
        "optimizer",
        {
            "lr": 0.5,
            "weight_decay": 0.01,
            "decay_norm_and_bias": True,
            "schedule": "constant",
            "warmup_epochs": 0.0,
        },
    ),
    ("experiment=table1_cifar10 learner=resnet50", "learner", {"stem": "cifar", "width": 64}),  # they fit: they hold
    ("experiment=table1_cifar10", "switch", {"constants": "reference", "threshold": 0.995, **HANDOVER}),
]


@pytest.mark.parametrize(("words", "group", "found"), SWAPS, ids=[words for words, *_ in SWAPS])
def test_a_part_swapped(words: str, group: str, found: dict[str, Any]) -> None:
    assert getattr(compose(words.split()), group).options == found


def test_it_is_said_and_shown(rela: Rela) -> None:
    words = ("experiment=cifar10_mini_byol", "method=simclr", "dataset=fake", "runtime.dry_run=true")
    done = rela("train", "-m", *words, "seed=0,1", stub=NO_TORCH)
    said = "experiment=cifar10_mini_byol sets method.ema=0.9 for method=byol; with method=simclr that falls away"
    kept = "experiment=cifar10_mini sets dataset.limit=5000 for dataset=image_folder; dataset=fake takes that, too"
    assert (done.returncode, done.stderr) == (0, f"rela: {said}\nrela: {kept}, unless you say something else\n")
    shown = yaml.safe_load(rela("train", "--cfg", "job", *words[:3], stub=NO_TORCH).stdout)
    assert (shown["method"]["name"], "ema" in shown["method"], shown["optimizer"]["lr"]) == ("simclr", False, 2e-3)


KEPT = [
    (
        "experiment=cifar10_mini_byol optimizer=sgd",
        [
            "cifar10_mini_byol sets optimizer.lr=0.002 for optimizer=adamw; optimizer=sgd takes that, too",
            "cifar10_mini sets optimizer.schedule=cosine for optimizer=adamw; optimizer=sgd takes that, too",
        ],
    ),
    ("experiment=cifar10_mini_byol optimizer=sgd optimizer.lr=0.1 optimizer.schedule=constant", []),
    ("experiment=cifar10_mini_byol optimizer=adamw", []),
    (
        "experiment=cifar10_mini dataset=cifar10",
        ["cifar10_mini sets dataset.limit=5000 for dataset=image_folder; dataset=cifar10 takes that, too"],
    ),
    ("experiment=cifar10_mini budget=0.5 seed=1", []),
]


@pytest.mark.parametrize(("words", "said"), KEPT, ids=[words for words, _ in KEPT])
def test_what_a_preset_sets_for_another_part_and_holds_is_said(words: str, said: list[str]) -> None:
    composer = Composer(parse(words.split()))
    composer.check()
    assert [note.partition("=")[2].partition(", unless ")[0] for note in composer.notes] == said


def test_in_a_sweep_each_cell_by_itself() -> None:
    line = parse(["-m", "experiment=table1_cifar10", "switch=adaptive,never"])
    composer = Composer(line)
    cells, _ = composer.cells()
    assert [compose(cell).switch.options for cell in cells] == [
        {"constants": "reference", "threshold": 0.995, **HANDOVER},
        {},
    ]
    assert len(composer.notes) == 1


def test_ones_own_word_for_a_key_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown key switch\.constants for switch=never"):
        compose(["experiment=table1_cifar10", "switch=never", "switch.constants=share"])


def test_a_mistake_in_a_preset_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer:\n  wieght_decay: 1\n")
    with pytest.raises(ConfigError, match=r"experiment=mine: unknown key optimizer\.wieght_decay.*mean weight_decay"):
        compose(["experiment=mine"], str(tmp_path))
    line = "# @package _global_\ndefaults:\n  - table1_cifar10\n  - override /switch: never\n"
    (tmp_path / "experiment" / "yours.yaml").write_text(line)
    assert compose(["experiment=yours"], str(tmp_path)).switch.options == {}
