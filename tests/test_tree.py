"""What the repository holds at its top: nothing that a run or a test has left there."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import ROOT

FOLDERS = {".ci", ".github", "conf", "docs", "examples", "outputs", "rela_cli", "scripts", "tests"}


def test_no_run_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, timeout=60, check=True)
    paths = done.stdout.splitlines()
    assert {path.split("/")[0] for path in paths if "/" in path} <= FOLDERS
    assert [path for path in paths if path.startswith("outputs/")] == ["outputs/.gitkeep"]
