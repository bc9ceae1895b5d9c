"""A fine-tuning that was killed goes on from its last checkpoint, and ends with the number of an undisturbed one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from rela_cli import cli
from tests.promises.harness import FAKE, call, temporaries

RUN = ("train", *FAKE, "prior=none", "batch_size=16", "epochs=1", "probe.protocols=[knn]", "probe.baselines=false")
DATA = ("dataset=fake", "dataset.n=48", "dataset.n_test=40", "dataset.size=8", "runtime.threads=1")
SHORT = ("probe.finetune_steps=3", "probe.finetune_batch_size=16", "checkpoint.every_seconds=0")
TUNE = ("probe", "latest", *DATA, "probe.protocols=[finetune]", *SHORT)
KILLS = {  # two networks, four trainings of 3 steps each, a checkpoint after each step
    "checkpoint.after_write:2": "",  # in the first training
    "checkpoint.after_replace:8": "resumed at step 1 of training 1",
    "baselines.before_replace": "resumed at step 3 of training 3",  # the first network is done but for its name
    "checkpoint.after_replace:1": "(from scratch)",
}


def numbers(folder: Path) -> dict[str, Any]:
    """Beside the run, without what no two runs have alike."""
    (path,) = folder.glob("outputs/runs/fake-*/on_fake-*.json")
    found = json.loads(path.read_text())
    return {side: found[side]["finetune-100%"] | {"seconds": 0} for side in ("probe", "untrained")}


def test_killed_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for place in (whole, cut):
        place.mkdir()
        monkeypatch.chdir(place)
        assert cli.main(RUN) == 0
    for point, said in KILLS.items():
        assert call(cut, *TUNE, env={"RELA_FAULT": point}) == -signal.SIGKILL, point
        assert said in (cut / "out").read_text(), (point, (cut / "out").read_text())
        assert not list(cut.glob("outputs/runs/fake-*/on_*"))
    assert call(cut, *TUNE) == 0
    monkeypatch.chdir(whole)
    assert cli.main(TUNE) == 0
    assert numbers(cut) == numbers(whole)
    assert temporaries(cut / "outputs") == []
    assert not list(cut.rglob("checkpoint-*"))
