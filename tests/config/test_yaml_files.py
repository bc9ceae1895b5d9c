"""Yamls that are read once: as fast as that sounds, and never stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from omegaconf import OmegaConf

from rela_cli.config import loader
from rela_cli.config.compose import compose
from rela_cli.config.overrides import CommandLine
from rela_cli.config.trees import Trees

WORDS = ("prior=random", "experiment=cifar10_mini", "dataset=fake", "switch=never", "optimizer=sgd")
OTHERS = ("paths.run=by/hand", "prior=random", "prior.width=5", "dataset=fake", "optimizer.lr=3", "hydra.job.name=x")


def test_what_is_composed_is_what_hydra_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time, too, and with other words in between: composing changes nothing that is remembered."""
    read_once = [Trees(CommandLine({}, ())).load(words) for words in (OTHERS, WORDS, OTHERS[1:2], WORDS)]
    monkeypatch.setattr(loader, "YamlFiles", ConfigRepository)
    hydras_own: Any = defaults_list._create_interpolation_map
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", hydras_own.__wrapped__)
    read_anew = [Trees(CommandLine({}, ())).load(words) for words in (OTHERS, WORDS, OTHERS[1:2], WORDS)]
    as_text = [[OmegaConf.to_yaml(tree, sort_keys=True) for tree in pair] for pair in (*read_once, *read_anew)]
    assert as_text[:4] == as_text[4:]


def test_a_yaml_that_changes_is_read_again(tmp_path: Path) -> None:
    preset = tmp_path / "experiment" / "mine.yaml"
    preset.parent.mkdir()
    for epochs in (3, 14):
        preset.write_text(f"# @package _global_\nepochs: {epochs}\n")
        assert compose(["experiment=mine"], str(tmp_path)).epochs == epochs


def test_an_interpolation_in_a_defaults_list_knows_the_choices(tmp_path: Path) -> None:
    (tmp_path / "learner" / "head").mkdir(parents=True)
    (tmp_path / "learner" / "mine.yaml").write_text("defaults: [{head: '${method}'}]\nname: mine\n")
    (tmp_path / "learner" / "head" / "simsiam.yaml").write_text("width: 14\n")
    trees = Trees(CommandLine({"--config-dir": str(tmp_path)}, ()))
    assert trees.load(["learner=mine", "method=simsiam"])[0].learner.head.width == 14


@pytest.mark.parametrize(
    "part", ["prior=checkpoint", "prior=ensemble", "dataset=efficient", "dataset=packed", "runtime=cpu", "switch=fixed"]
)
def test_the_keys_of_a_part_are_those_that_are_composed(part: str) -> None:
    """Read from its yaml alone, or composed where the yaml stands on others (efficient, cpu)."""
    trees = Trees(CommandLine({}, ()))
    group, _, option = part.partition("=")
    assert trees.keys(group, option) == set(trees.load([part])[0][group])
