"""What README and the pages of docs/ show is what happens: their own parts, their own commands."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest

from rela_cli import cli
from tests.conftest import ROOT, Rela

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def blocks(page: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(page: Path) -> list[list[str]]:
    """The words of every `rela train` of a page's plain blocks, placeholders left out."""
    text = "\n".join(blocks(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ )?rela train (.*)$", text, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def own_parts(tmp_path: Path) -> Path:
    """The files that docs/extending.md shows, each under the path in its first line."""
    for text in (*blocks(EXTENDING, "python"), *blocks(EXTENDING, "yaml")):
        first = text.partition("\n")[0]
        if re.fullmatch(r"# [\w/]+\.(py|yaml)", first):
            path = tmp_path / first[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path


def test_own_prior_and_own_method_from_outside(rela: Rela, own_parts: Path) -> None:
    command = next(line for line in EXTENDING.splitlines() if line.startswith("rela train --config-dir parts"))
    few = ["epochs=1", "dataset.limit=256", "learner.width=4", "probe.protocols=[knn]"]
    words = [*shlex.split(command)[1:], *few]
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

    table = [line for line in section(README, "Which prior").splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`([a-z0-9_]+)`", line)}
    assert set(options("prior")) <= named


def test_every_command_of_the_table_is_there() -> None:
    from rela_cli.cli import OTHER_COMMANDS, STAGED

    named = set(re.findall(r"`rela ([a-z-]+)", section(README, "Commands")))
    assert named >= {*STAGED, *OTHER_COMMANDS}


def test_every_link_of_a_page_leads_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_file_that_a_page_names_is_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\b((?:rela_cli|conf|tests|scripts|docs)/[\w/]+\.\w+)", text):
            assert (ROOT / name).exists() or name.endswith(("/x.py", "/x.yaml")), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_train_command_of_a_page_composes(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key and choice is there; nothing is run."""
    from rela_cli.config.compose import compose

    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        if {"-m", "--config-dir", "+bugdet=0.5", "..."} & set(words):
            continue
        compose([word for word in words if not word.startswith("-")])


RUN_BY = {"api.md": "tests/api/test_api.py", "extending.md": "tests/test_readme.py", "runs.md": "tests/test_readme.py"}


def test_every_block_of_python_is_run_by_a_test() -> None:
    """Commands are checked here: settings above, options below. What is in Python runs."""
    assert {page.name for page in PAGES if blocks(page.read_text(encoding="utf-8"), "python")} == set(RUN_BY)
    said = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for page, place in RUN_BY.items():
        assert (ROOT / place).exists() and page in said


def test_the_weights_of_a_run_load_into_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    import torch
    import torchvision

    monkeypatch.chdir(tmp_path)
    Path("outputs/runs/latest").mkdir(parents=True)
    trained = torchvision.models.resnet18()
    trained.fc = torch.nn.Identity()
    safetensors.torch.save_file(trained.state_dict(), "outputs/runs/latest/backbone.safetensors")
    (block,) = blocks((ROOT / "docs" / "runs.md").read_text(encoding="utf-8"), "python")
    names = {"torch": torch, "torchvision": torchvision, "safetensors": safetensors}
    exec(block, names)
    assert torch.equal(names["model"].conv1.weight, trained.conv1.weight)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def options() -> Callable[[str], set[str]]:
    """The options of a command, as its help names them."""

    @cache
    def of(command: str) -> set[str]:
        shown = io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            cli.main([*command.split(), "--help"])
        return set(re.findall(r"--[a-z][a-z-]*", shown.getvalue()))

    return of


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_of_a_command_of_a_page_is_there(page: Path, options: Callable[[str], set[str]]) -> None:
    text = "\n".join(blocks(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    for command, words in re.findall(r"^(?:\$ )?rela (data [a-z]+|[a-z-]+)(.*)$", text, flags=re.MULTILINE):
        if command.split()[0] in cli.OTHER_COMMANDS:
            named = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", words.partition("  #")[0]))
            assert named <= options(command), f"{page.name}: rela {command}{words}"
