"""Yamls that are read once: as fast as that sounds, and never stale."""

from __future__ import annotations

from pathlib import Path

import pytest
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
    read_anew = [Trees(CommandLine({}, ())).load(words) for words in (OTHERS, WORDS, OTHERS[1:2], WORDS)]
    as_text = [[OmegaConf.to_yaml(tree, sort_keys=True) for tree in pair] for pair in (*read_once, *read_anew)]
    assert as_text[:4] == as_text[4:]


def test_a_yaml_that_changes_is_read_again(tmp_path: Path) -> None:
    preset = tmp_path / "experiment" / "mine.yaml"
    preset.parent.mkdir()
    for epochs in (3, 14):
        preset.write_text(f"# @package _global_\nepochs: {epochs}\n")
        assert compose(["experiment=mine"], str(tmp_path)).epochs == epochs
