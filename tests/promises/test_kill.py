"""Rows 1 and 2 of docs/reliability.md: kill -9 at each named point of a writer, inside each stage, and at random.

Real processes, each forked from one that has imported torch already. A run that was killed is started again with the
same command and has to leave what an uninterrupted one leaves, bit for bit.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rela_cli.store.faults import FAULT_POINTS
from rela_cli.store.files import read_json
from rela_cli.training.checkpoint import Checkpoints
from tests.promises import harness
from tests.promises.harness import call, differing, finish, left, run_folder, spawn, temporaries

EVERY = "checkpoint.every_seconds=0"  # so an interval is a step
RUN, TOTAL = tuple("epochs=4" if word == "epochs=6" else word for word in harness.RUN), 16


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


@pytest.mark.parametrize("point", [*FAULT_POINTS, "after_prune"])
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
    "result.after_sync": "nothing to do",
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


@dataclass
class Toll:
    """What came of killing a command again and again, until it had been killed `injected` times."""

    injected: int = 0
    in_training: int = 0  # of those, while there was a checkpoint to go on from
    ended: int = 0  # runs that came to their end in between
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"faults injected: {self.injected} ({self.in_training} in training), runs ended: {self.ended}, "
            f"lost: {len(self.lost)}"
        )


def lost(place: Path, expected: dict[str, Any]) -> list[str]:
    """What a run that was killed has not brought to its end as an undisturbed one does."""
    try:
        assert_undisturbed(place, expected)
    except Exception as error:  # also a file that is not there
        return [f"{place.name}: {type(error).__name__}: {error}"]
    return []


def reached(place: Path) -> int:
    """The step up to which nothing has to be done again: the newest checkpoint's, or the last when training is done."""
    manifests = map(read_json, place.glob("outputs/runs/fake-*/manifest.json"))
    return TOTAL if any("train" in (facts or {}) for facts in manifests) else max(steps(place), default=0)


def kills(folder: Path, expected: dict[str, Any], number: int, seed: int) -> Toll:
    """Start the same command again and again, and kill it at random times; a run that ends is followed by a new one."""
    toll, chance, pace, newest = Toll(), random.Random(seed), paced(folder / "paced"), 0
    while True:
        place = folder / f"run{toll.ended}"
        process = spawn(place, "train", *RUN, EVERY)
        if toll.injected < number:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.02, 1) * pace)
            process.kill()
        status = finish(process)
        if status == 0:
            toll.lost += lost(place, expected)
            toll.ended, newest = toll.ended + 1, 0
            if toll.injected == number:
                print(toll)
                return toll
            continue
        assert status == -signal.SIGKILL, (place / "err").read_text()
        toll.injected += 1
        found = reached(place)
        toll.in_training += bool(steps(place))
        if found < newest:
            toll.lost.append(f"{place.name}: step {newest} was saved, {found} is what is left of it")
        newest = found


def paced(folder: Path) -> float:
    """Seconds that the command takes when nothing happens to it."""
    began = time.monotonic()
    assert call(folder, "train", *RUN, EVERY) == 0
    return time.monotonic() - began


def test_killed_at_random(tmp_path: Path, expected: dict[str, Any]) -> None:
    toll = kills(tmp_path, expected, 10, seed=0)
    assert toll.lost == []
    assert toll.injected == 10 and toll.in_training > 0


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_killed_at_random_two_hundred_times(tmp_path: Path, expected: dict[str, Any]) -> None:
    """Minutes; `-rA` shows what came of it: pytest tests/promises/test_kill.py -m long -rA."""
    toll = kills(tmp_path, expected, 200, seed=1)
    assert toll.lost == []
    assert toll.injected == 200 and toll.in_training > 20
