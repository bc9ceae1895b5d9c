"""Sweeps whose cells raise, exit or hang, and sweeps that are stopped or killed: with the real pipeline."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from rela_cli import cli
from rela_cli.launch import sweep
from tests.conftest import Rela
from tests.promises.helpers import FAKE, SHORT, only, read, start, wait_until
from tests.promises.test_ranks import is_alive

OWN = '''
import os, sys, time
from pathlib import Path
from rela_cli.priors.base import Prior
class Moody(Prior):
    """Does as it is told, while the file `calm` is not there."""
    def __init__(self, mood):
        super().__init__()
        self.feature_dim, self.mood = 3, mood
    def forward(self, images):
        if not Path("calm").exists():
            if self.mood == "raise": raise ZeroDivisionError("of its own making")
            if self.mood == "exit": sys.exit(0)
            if self.mood == "hang":
                Path("hanging").touch()
                time.sleep(600)
            if self.mood == "die": os.kill(os.getpid(), 9)
        return images.float().mean((2, 3))
'''


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text(OWN)
    (tmp_path / "parts" / "prior").mkdir(parents=True)
    (tmp_path / "parts" / "prior" / "moody.yaml").write_text("# M.\nname: moody\n_target_: own.Moody\nmood: none\n")
    return ("train", "-m", "--config-dir", "parts", "allow=[own]", *FAKE, *SHORT, "prior=moody")


def finished(tmp_path: Path) -> int:
    runs = (tmp_path / "outputs" / "runs").glob("fake-*/manifest.json")
    return sum(read(path)["status"] == "finished" for path in runs)


def test_cells_that_raise_or_exit_stop_no_other_and_the_same_command_repeats_them_alone(
    rela: Rela, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = rela(*words, "prior.mood=none,raise,exit,fine")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "4 cells: 2 run, 0 found, 2 failed"
    for number, mood, message in [
        (2, "raise", "ZeroDivisionError: of its own making"),
        (3, "exit", "something in this cell called sys.exit(0)"),
    ]:
        at = lines.index(next(line for line in lines if line.startswith(f"failed: cell {number}: ")))
        assert f"prior.mood={mood}" in lines[at]
        assert message in lines[at + 1]
        (said,) = (line for line in done.stderr.splitlines() if line.startswith(f"rela: cell {number} of 4 failed ("))
        assert f"prior.mood={mood}): {message}; traceback: " in said
        assert "Traceback" in (tmp_path / said.rpartition("traceback: ")[2]).read_text()
    (tmp_path / "calm").touch()
    again = rela(*words, "prior.mood=none,raise,exit,fine")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "4 cells: 2 run, 2 found, 0 failed")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_says_what_is_done_and_what_is_not(
    tmp_path: Path, words: tuple[str, ...], signum: int, status: int
) -> None:
    process = start(tmp_path, *words, "prior.mood=none,hang,fine")
    wait_until((tmp_path / "hanging").exists)
    process.send_signal(signum)
    out, error = process.communicate(timeout=120)
    assert process.returncode == status, (out, error)
    lines = out.splitlines()
    assert lines[-1] == "3 cells: 1 run, 0 found, 0 failed, 2 not finished"
    said = [[*line.split()[:3], line.rpartition("=")[2]] for line in lines if line.startswith(("  done", "  not done"))]
    assert said == [["done", "cell", "1:", "none"], ["not", "done", "cell", "hang"], ["not", "done", "cell", "fine"]]
    assert "the same command goes on with what is not done" in out
    assert "Traceback" not in out + error
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert json.loads((folder / "1.json").read_text())["status"] == "stopped"


def test_a_killed_sweep_runs_just_what_is_missing(rela: Rela, tmp_path: Path, words: tuple[str, ...]) -> None:
    process = start(tmp_path, *words, "prior.mood=none,hang,fine")
    wait_until((tmp_path / "hanging").exists)
    process.kill()
    process.communicate()
    assert finished(tmp_path) == 1
    stamp = only(tmp_path / "outputs" / "runs", "fake-*/result.json").stat()
    (tmp_path / "calm").touch()
    again = rela(*words, "prior.mood=none,hang,fine")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "3 cells: 2 run, 1 found, 0 failed"), again.stderr
    assert finished(tmp_path) == 3
    first = min((tmp_path / "outputs" / "runs").glob("fake-*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


def test_cells_leave_when_their_sweep_is_killed(tmp_path: Path, words: tuple[str, ...]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    at_once = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "prior.mood=hang", "seed=0,1,2,3")
    process = start(tmp_path, *words[:-1], "prior=moody", *at_once)
    wait_until(lambda: len(list(tmp_path.glob("outputs/sweeps/*/*.pid"))) == 2 and (tmp_path / "hanging").exists())
    pids = [int(path.read_text()) for path in tmp_path.glob("outputs/sweeps/*/*.pid")]
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_alive, pids)), 60)


def test_a_record_that_cannot_be_written_is_said_and_the_cells_go_on(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a disk that is full: each cell is what it is."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_write", full)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("RELA_BRIEF", raising=False)
    assert cli.main([*words, "prior.mood=none,raise"]) == 1
    out, error = capsys.readouterr()
    assert out.splitlines()[-1] == "2 cells: 1 run, 0 found, 1 failed"
    assert "ZeroDivisionError: of its own making" in out and "killed" not in out
    assert error.count("cannot be written down: [Errno 28] No space left on device") == 2
    monkeypatch.delenv("RELA_BRIEF")


def test_a_folder_of_hydras_that_cannot_be_written_is_no_cells_fault(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = rela("train", "-m", *FAKE, *SHORT, "prior=none", "seed=0,1", "hydra.sweep.dir=file/below")
    assert done.returncode == 1
    assert (
        done.stderr.startswith("rela: no cell was started: ") and "hydra.sweep.dir=file/below has to be" in done.stderr
    )
    assert "killed" not in done.stdout + done.stderr


def test_a_sweep_says_how_long_all_of_it_will_take_in_a_few_lines_a_cell(rela: Rela, tmp_path: Path) -> None:
    done = rela("train", "-m", *FAKE, *SHORT, "prior=none", "seed=0,1,2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rest = [line for line in lines if "cells done; all of them in about" in line]
    assert [line.split(";")[0] for line in rest] == ["1 of 3 cells done", "2 of 3 cells done"]
    assert lines.index(rest[1]) - lines.index(rest[0]) <= 7
