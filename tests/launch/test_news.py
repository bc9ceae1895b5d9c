"""A failed cell is said at once, while others still run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rela_cli.launch import news
from tests.promises.helpers import wait_until


def test_cells_that_write_elsewhere_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each that has failed, before the sweep is over; none for one that has run."""
    monkeypatch.setattr(news, "POLL", 0.01)
    said: list[str] = []

    def heard() -> bool:
        said.append(capsys.readouterr().err)
        return "cell 2 of 3 failed" in "".join(said)

    with news.failures_shown(tmp_path, 3):
        (tmp_path / "0.json").write_text(json.dumps({"status": "run", "overrides": ["seed=0"]}))
        record = {"status": "failed", "overrides": ["seed=1"], "message": "RelaError: no room:\n  ways out"}
        (tmp_path / "1.json").write_text(json.dumps({**record, "traceback": str(tmp_path / "1.traceback.txt")}))
        wait_until(heard)
    assert "".join(said).startswith("rela: cell 2 of 3 failed (seed=1): RelaError: no room; traceback: ")
    assert "".join(said).count("\n") == 1
