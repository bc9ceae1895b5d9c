"""Hydra is called as `rela` calls it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig

from rela_cli import cli
from rela_cli.config.loader import Loader


def test_help_of_hydra_that_is_no_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As Python 3.14 checks it, on any Python."""
    parsers: Any = argparse._ActionsContainer
    add = parsers.add_argument

    def check(self: Any, action: Any) -> None:
        if not isinstance(action.help, str | None):
            raise ValueError("badly formed help string")

    def add_and_check(self: Any, *words: Any, **more: Any) -> Any:
        action = add(self, *words, **more)
        self._check_help(action)
        return action

    monkeypatch.setattr(parsers, "_check_help", check, raising=False)
    monkeypatch.setattr(parsers, "add_argument", add_and_check)
    assert cli.main(["train", "--cfg", "job"]) == 0
    assert "budget:" in capsys.readouterr().out
    assert parsers._check_help is check


@pytest.mark.parametrize("typed", [(), ("hydra.mode=RUN",)])
def test_a_run_is_composed_to_be_checked_and_once_by_hydra(
    typed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """hydra.mode is known by then; Hydra adds it where nobody has."""
    composed: list[list[str]] = []
    load = Loader.load_configuration

    def noted(
        self: Loader, config_name: str, overrides: list[str], run_mode: RunMode, *more: bool, **words: bool
    ) -> DictConfig:
        composed.append([f"as {run_mode.name}", *overrides])
        return load(self, config_name, overrides, run_mode, *more, **words)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Loader, "load_configuration", noted)
    assert cli.main(["train", "dataset=fake", "runtime.dry_run=true", *typed]) == 0
    said = ["as RUN", "dataset=fake", "runtime.dry_run=true"]
    assert composed == [[*said, *typed], [*said, "hydra.mode=RUN"]]
