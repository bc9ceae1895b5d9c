"""scripts/past_prior.py: points above the prior alone, by prior, width and number of images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.report.made_runs import Make, make

__all__ = ["make"]  # a fixture


def drawn(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script on folder/outputs, writing to folder."""
    command = [sys.executable, str(ROOT / "scripts" / "past_prior.py"), "outputs", "--to", "drawn", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_line_for_each_width_and_other_recipes_left_out(make: Make, tmp_path: Path) -> None:
    adaptive = {"switch": "adaptive"}
    for seed, top1 in ((0, 0.50), (1, 0.54)):
        make(top1, "patches", 0.5, seed, adaptive, prior_alone=0.53, feature_dim=64, steps=624, train_samples=5000)
    longer, wider = {**adaptive, "epochs": 75}, {**adaptive, "learner.width": 16}
    make(0.58, "patches", 0.5, 0, longer, prior_alone=0.53, feature_dim=64, steps=1560, train_samples=5000)
    make(0.50, "patches", 0.5, 0, wider, prior_alone=0.56, feature_dim=128, steps=624, train_samples=5000)
    live = {**adaptive, "matching.targets": "live"}
    make(0.99, "patches", 0.5, 0, live, prior_alone=0.53, feature_dim=64, steps=624, train_samples=5000)
    make(0.99, "patches", 0.5, 0, prior_alone=0.53, feature_dim=64, steps=624, train_samples=5000)  # never switches
    make(0.99, "random", 0.5, 0, adaptive, prior_alone=0.36, feature_dim=64, steps=624, train_samples=5000)
    done = drawn(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "patches, 64 features, 5,000 images: -1.0 at 624 (n 2), +5.0 at 1,560 (n 1)",
        "patches, 128 features, 5,000 images: -6.0 at 624 (n 1)",
    ]
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"past-prior.png", "past-prior.svg"}
    none = drawn(tmp_path, "--prior", "embedded")
    assert (none.returncode, "no finished run with prior embedded" in none.stderr) == (3, True)
