"""What a kill or a failure leaves behind, and what a second process is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rela_cli.errors import RelaError
from rela_cli.pipeline.run import Run
from tests import warm
from tests.conftest import Rela
from tests.pipeline.shared import FAKE, RANDOM, WORDS, go, read, result, run_folder, setup, stamps

LONG = (*FAKE, *RANDOM, "batch_size=16", "epochs=25", "probe.protocols=[knn]", "runtime.eval_every_epochs=0")


def start(tmp_path: Path, *words: str) -> warm.Process:
    return warm.start(tmp_path, "train", *words, env=os.environ)


def wait_until(ready: Callable[[], object], process: warm.Process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def has_trained(tmp_path: Path) -> bool:
    folder = run_folder(tmp_path)
    return bool(folder and (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size)


def test_kill_9_in_mid_training_leaves_a_run_that_can_be_made(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG)
    wait_until(lambda: has_trained(tmp_path), process)
    process.kill()
    process.communicate()
    folder = run_folder(tmp_path)
    assert folder is not None
    assert read(folder / "manifest.json")["status"] == "running"
    words = (*LONG, "epochs=2")  # not the same run, the same folder of artifacts
    again = go(tmp_path / "outputs", *words)
    assert again.status == "run"
    assert result(again)["seconds_now"]["extract"] == 0
    assert go(tmp_path / "outputs", *LONG, until="transport").status == "found"
    assert Run(setup(tmp_path / "outputs", *LONG)).trained is None


def test_a_second_process_is_told_who_is_at_work(rela: Rela, tmp_path: Path) -> None:
    words = [word.replace("epochs=25", "epochs=1000") for word in LONG]  # the first must not end before the second asks
    process = start(tmp_path, *words)
    wait_until(lambda: has_trained(tmp_path), process)
    second = rela("train", *words)
    process.kill()
    process.communicate()
    assert second.returncode == 1
    assert f"in use by process {process.pid} on " in second.stderr


def test_a_failure_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.training import trainer

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    with monkeypatch.context() as broken:
        broken.setattr(trainer.Trainer, "fit", fail)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path, *WORDS)
    folder = next((tmp_path / "runs").glob("fake-*"))
    manifest = read(folder / "manifest.json")
    assert (manifest["status"], "of all things" in manifest["reason"]) == ("failed", True)
    assert "ZeroDivisionError: of all things" in (folder / "traceback.txt").read_text()
    assert not (folder / "result.json").exists()
    assert go(tmp_path, *WORDS).status == "run"
    manifest = read(folder / "manifest.json")
    assert manifest["status"] == "finished"
    assert "reason" not in manifest
    assert not (folder / "traceback.txt").exists()


def test_a_failing_probe_keeps_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.evaluation import protocols

    with monkeypatch.context() as broken:
        broken.setitem(protocols.FITTERS, "knn", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path, *WORDS)
    folder = next((tmp_path / "runs").glob("fake-*"))
    before = stamps(folder)["backbone.safetensors"]
    assert go(tmp_path, *WORDS).status == "run"
    assert stamps(folder)["backbone.safetensors"] == before


def test_an_unwritable_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((RelaError, OSError), match="file"):
        go(tmp_path / "file", *WORDS)
