"""Rows 1 and 2 of docs/reliability.md: kill -9 at each named point of a writer, inside each stage, and at random.

Real processes, each forked from one that has imported torch already. A run that was killed is started again with the
same command and has to leave what an uninterrupted one leaves, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rela_cli.checkpoint import Checkpoints
from rela_cli.faults import POINTS

from .harness import RUN, call, differing, finish, left, run_folder, spawn, temporaries

EVERY = "checkpoint.every_seconds=0"  # so an interval is a step
TOTAL = 24


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run leaves when nothing happens to it; its checkpoints are as rare as they come."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert call(folder, "train", *RUN) == 0, (folder / "err").read_text()
    return left(folder)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((run_folder(folder) / "manifest.json").read_text()))


def steps(folder: Path) -> list[int]:
    """Of the checkpoints there, the newest first."""
    runs = folder / "outputs" / "runs"
    names = [path.name for run in runs.glob("fake-*") for path in Checkpoints(run, 0).found()]
    return [int(name.split("-")[1]) for name in names]


def assert_undisturbed(folder: Path, expected: dict[str, Any]) -> None:
    assert differing(left(folder), expected) == []
    assert manifest(folder)["status"] == "finished"
    assert steps(folder) == [], "they go when training is done"
    assert temporaries(folder / "outputs") == []


@pytest.mark.parametrize("point", [*POINTS, "after_prune"])
def test_killed_while_a_checkpoint_is_written(tmp_path: Path, expected: dict[str, Any], point: str) -> None:
    """The sixth: of step 6 before its name stands, else step 6 itself, is what the next call goes on from."""
    fault = {"RELA_FAULT": f"checkpoint.{point}:6"}
    assert call(tmp_path, "train", *RUN, EVERY, env=fault) == -signal.SIGKILL
    saved = 5 if point in ("before_write", "after_write", "after_fsync") else 6
    assert steps(tmp_path)[0] == saved
    assert bool(temporaries(tmp_path / "outputs")) == (point in ("after_write", "after_fsync"))
    assert call(tmp_path, "train", *RUN, EVERY) == 0, (tmp_path / "err").read_text()
    assert f"resumed at step {saved} of {TOTAL}" in (tmp_path / "out").read_text()
    assert [(entry["step"], entry["phase"]) for entry in manifest(tmp_path)["resumes"]] == [(saved, 1)]
    assert manifest(tmp_path)["resumes"][0]["when"]
    assert_undisturbed(tmp_path, expected)


STAGES = {  # and whether training is over then: in its first process, or not even begun in the next
    "images.after_fill": "",
    "features.after_fill": "",
    "features.after_replace": "",
    "targets.before_replace": "",
    "manifest.after_write:4": "",
    "backbone.after_write": f"resumed at step {TOTAL} of {TOTAL}",
    "backbone_target.after_replace": f"resumed at step {TOTAL} of {TOTAL}",
    "baselines.before_replace": "train     cached",
    "result.after_write": "train     cached",
}


@pytest.mark.parametrize("point", STAGES)
def test_killed_inside_a_stage(tmp_path: Path, expected: dict[str, Any], point: str) -> None:
    assert call(tmp_path, "train", *RUN, env={"RELA_FAULT": point}) == -signal.SIGKILL
    entries = [path for path in (tmp_path / "outputs" / "cache").glob("*/*/manifest.json") if ".tmp" not in str(path)]
    done = {path: path.stat().st_mtime_ns for path in entries}
    assert call(tmp_path, "train", *RUN) == 0, (tmp_path / "err").read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished stages are reused"
    assert STAGES[point] in (tmp_path / "out").read_text()
    assert_undisturbed(tmp_path, expected)


def kills(folder: Path, expected: dict[str, Any], number: int, seed: int) -> int:
    """Start the same command again and again, and kill it at random; how many of the processes had got to training."""
    chance, began, hit = random.Random(seed), time.monotonic(), 0
    assert call(folder / "paced", "train", *RUN, EVERY) == 0
    pace, place, newest, trained = time.monotonic() - began, folder / "run0", 0, 0
    while hit < number:
        process = spawn(place, "train", *RUN, EVERY)
        process.join(chance.uniform(0.02, 1) * pace)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        if finish(process) == 0:
            assert_undisturbed(place, expected)
            place, newest = folder / f"run{hit}", 0
            continue
        assert process.exitcode == -signal.SIGKILL, (place / "err").read_text()
        hit += 1
        found = steps(place)
        trained += bool(found)
        if found and newest:
            assert found[0] >= newest, "nothing that was saved is lost"
        newest = found[0] if found else newest
    assert call(place, "train", *RUN, EVERY) == 0, (place / "err").read_text()
    assert_undisturbed(place, expected)
    return trained


def test_killed_at_random(tmp_path: Path, expected: dict[str, Any]) -> None:
    assert kills(tmp_path, expected, 20, seed=0) > 0


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_killed_at_random_two_hundred_times(tmp_path: Path, expected: dict[str, Any]) -> None:
    assert kills(tmp_path, expected, 200, seed=1) > 20
