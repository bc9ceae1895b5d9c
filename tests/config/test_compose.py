"""Hydra is called as `rela` calls it."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from rela_cli import cli


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
