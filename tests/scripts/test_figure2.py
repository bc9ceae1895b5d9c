"""The paper's Figure 2: both halves say what the paper says, from the numbers in the json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "figure2.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure2") / "new"
    done = subprocess.run([sys.executable, SCRIPT, out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_three_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"figure2.png", "figure2.svg", "figure2.json"}


def test_less_variance_and_stronger_relabelling_converge_faster(folder: Path) -> None:
    curves = json.loads((folder / "figure2.json").read_text())["curves"]
    shrunk = [one for one in curves if one["label_noise"] == 0]
    relabelled = [one for one in curves if one["label_noise"]]
    assert [one["variance_share"] for one in shrunk] == [1, 0.5, 0.25, 0.1]
    assert [one["rho"] for one in relabelled] == [0, 0.5, 0.9, 1]
    for group in (shrunk, relabelled):
        firsts = [one["first_step_within_0.02_of_bayes"] or float("inf") for one in group]
        assert firsts == sorted(firsts, reverse=True)
        assert firsts[-1] < firsts[0]
        assert len({one["loss_each_10_steps"][0] for one in group}) == 1  # the same start


def test_relabelling_ends_at_the_best_and_shrinking_beyond_it(folder: Path) -> None:
    found = json.loads((folder / "figure2.json").read_text())
    last = {(one["variance_share"], one["rho"], one["label_noise"]): one["last_loss"] for one in found["curves"]}
    assert last[1, 1, 0.1] == pytest.approx(found["bayes_loss"], abs=0.005)
    assert last[0.1, 0, 0] > last[1, 1, 0.1]
