"""The examples run as they stand, at a small size."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rela_cli import cli
from tests.conftest import ROOT
from tests.data.test_encoded import photo

EXAMPLES = ROOT / "examples"
SMALL = ["learner.width=4", "epochs=1", "prior.patches=8", "prior.pool=2", "transport.max_dim=32", "runtime=cpu"]
TRAIN = [*SMALL, "runtime.threads=1"]


def commands(name: str) -> list[list[str]]:
    """The words of every command that an example's README shows, but for pip."""
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line))[0] != "pip"]


def run(words: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """One command in this process: rela, or a script of the example."""
    if words[0] == "rela":
        return cli.main(list(words[1:]))
    monkeypatch.setattr(sys, "argv", [str(folder / words[1]), *words[2:]])
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def test_own_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(80):
        photo(tmp_path / "photos" / f"{i:02}.jpg", i)
    small = {
        "dataset.image_size=64": "dataset.image_size=16",
        "learner.width=16": "learner.width=4",
        "epochs=60": "epochs=1",
    }
    for words in commands("own-photos"):
        words = [small.get(word, word) for word in words]
        words += [*SMALL[2:], "batch_size=16"] * (words[1] in ("plan", "train"))
        assert run(words, EXAMPLES / "own-photos", monkeypatch) == 0, words
    out = capsys.readouterr()
    lines = [line for line in out.out.splitlines() if re.match(r"\d\d\.jpg: (\d\d\.jpg -?[\d.]+(, )?){3}$", line)]
    assert len(lines) == 80


def test_slurm_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut to two cells, one after the other, without Slurm."""
    monkeypatch.chdir(EXAMPLES / "slurm-sweep")
    here, _, *looks = commands("slurm-sweep")
    here = [word for word in here if not word.startswith("hydra")]
    cut = [f"paths.outputs={tmp_path / 'outputs'}", "prior=none,patches", "budget=1.0", "seed=0"]
    few = ["dataset.limit=256", *(word for word in TRAIN if not word.startswith("prior."))]
    assert run([*here, *cut, *few, "probe.protocols=[knn]"], tmp_path, monkeypatch) == 0
    assert "2 cells: 2 run, 0 found, 0 failed" in capsys.readouterr().out
    for words in looks:
        more = ["--no-neighbours"] * (words[1] == "report")
        assert run([*words, *more, f"--outputs={tmp_path / 'outputs'}"], tmp_path, monkeypatch) == 0, words
    assert "patches" in capsys.readouterr().out


def test_slurm_sweep_prints_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(EXAMPLES / "slurm-sweep")
    _, dry, *_ = commands("slurm-sweep")
    assert run([*dry, f"paths.outputs={tmp_path / 'outputs'}"], tmp_path, monkeypatch) == 0
    assert "#SBATCH --array=0-23" in capsys.readouterr().out


def test_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands("own-loop"):
        words += SMALL[2:5] if words[1] == "convert" else ["--epochs", "1", "--budget", "0.1"]
        assert run(words, EXAMPLES / "own-loop", monkeypatch) == 0
    said = capsys.readouterr().out.splitlines()
    before, after = (float(line.split()[1]) for line in said if line.startswith(("before:", "after:")))
    assert 0 < before <= 100 and 0 < after <= 100
    assert any(re.fullmatch(r"epoch 1 of 1: loss 0\.\d+", line) for line in said)


def fewer(cell: str) -> str:
    """A cell of the notebook with fewer images, steps and channels."""
    shared, small = "EPOCHS = 60", '"dataset=digits"'
    return cell.replace(shared, "EPOCHS = 1").replace(small, f'{small}, "dataset.limit=256", "learner.width=4"')


def test_quickstart_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells, in order, at a small size. The first one installs the package, as a hosted notebook needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    first, *cells = (str(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert first == "%pip install -q rela-cli"
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(fewer(cell), "quickstart.ipynb", "exec"), names)
    assert names["near"].shape == (10, 6)
    assert names["near"][:, 0].tolist() == list(range(10)), "each image is nearest to itself"
    assert capsys.readouterr().out.count("patches") >= 3
