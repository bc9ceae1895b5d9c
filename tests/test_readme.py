"""What the README shows is what happens: its own parts, its own commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from .conftest import ROOT, Rela

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def own_parts(tmp_path: Path) -> Path:
    """The files that the README shows, each under the path in its first line."""
    for text in (*blocks("python"), *blocks("yaml")):
        first = text.partition("\n")[0]
        if re.fullmatch(r"# [\w/]+\.(py|yaml)", first):
            path = tmp_path / first[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path


def test_own_prior_and_own_method_from_outside(rela: Rela, own_parts: Path) -> None:
    command = next(line for line in README.splitlines() if line.startswith("rela train --config-dir parts"))
    words = [*shlex.split(command)[1:], "epochs=1", "probe.protocols=[knn]"]
    done = rela(*words)
    assert done.returncode == 0, done.stderr
    result = json.loads((own_parts / "outputs" / "runs" / "latest" / "result.json").read_text())
    assert (result["prior"], result["method"], result["settings"]["method"]["weight"]) == ("thumbnail", "agree", 2)
    assert "nothing to do" in rela(*words).stdout
    assert "did you mean prior.size" in rela(*words, "prior.sise=8").stderr
    refused = rela(*(word for word in words if not word.startswith("allow=")))
    assert refused.returncode == 2
    assert "allow=[mypkg]" in refused.stderr


def test_every_prior_of_the_table_is_there() -> None:
    from rela_cli.commands.list import options

    table = [line for line in section("Which prior").splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`([a-z0-9_]+)`", line)}
    assert set(options("prior")) <= named


def test_every_command_of_the_table_is_there() -> None:
    from rela_cli.cli import OTHERS, STAGED

    named = set(re.findall(r"`rela ([a-z-]+)", section("Commands")))
    assert named >= {*STAGED, *OTHERS}
