"""Weights & Biases: told everything, and never a reason for a run to fail."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.conftest import Rela
from tests.pipeline.shared import WORDS, Json, go, read, run_folder


class Tracker:
    """Stands for the wandb module, and raises where it is told to."""

    Settings = dict

    def __init__(self, breaks: str = "") -> None:
        self.breaks, self.told, self.keywords = breaks, [], {}  # type: ignore[var-annotated]

    def fail(self, place: str) -> None:
        if place == self.breaks:
            raise ConnectionError(f"{place} is broken")

    def init(self, **keywords: Any) -> Tracker:
        self.fail("init")
        self.keywords = keywords
        return self

    def log(self, record: Json, step: int) -> None:
        self.told.append((step, record))
        self.fail("log")

    def finish(self, **_: Any) -> None:
        self.told.append("finished")
        self.fail("finish")


@pytest.mark.parametrize("breaks", ["import", "init", "log", "finish"])
def test_wandb_never_fails_a_run(tmp_path: Path, breaks: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None if breaks == "import" else Tracker(breaks))
    outcome = go(tmp_path, *WORDS, "epochs=3", "logger=wandb")
    assert outcome.folder is not None
    assert read(outcome.folder / "manifest.json")["status"] == "finished"
    assert (outcome.folder / "metrics.jsonl").read_text().count("\n") == 3
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rela: wandb")]
    assert len(warnings) == (2 if breaks in ("import", "init") else 1), "online, then offline; or once for all"


def test_wandb_is_told_everything(tmp_path: Path, monkeypatch: Any) -> None:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    outcome = go(tmp_path, *WORDS, "epochs=2", "logger=wandb", "logger.mode=offline", "logger.project=mine")
    assert outcome.folder is not None
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    assert tracker.told == [*((record["step"], record) for record in map(json.loads, lines)), "finished"]
    keys = {key: tracker.keywords[key] for key in ("mode", "project", "dir", "name")}
    assert keys == {"mode": "offline", "project": "mine", "dir": str(outcome.folder), "name": outcome.folder.name}
    assert tracker.keywords["config"]["budget"] == 0.5


def test_a_run_that_goes_on_stays_one_run_in_wandb(tmp_path: Path, monkeypatch: Any) -> None:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="cut off"):
        broken.setattr("rela_cli.training.trainer.Trainer.fit", Mock(side_effect=RuntimeError("cut off")))
        go(tmp_path, *WORDS, "logger=wandb")
    first = tracker.keywords
    go(tmp_path, *WORDS, "logger=wandb")
    again = tracker.keywords
    go(tmp_path, *WORDS, "logger=wandb", "seed=1")
    assert (first["dir"], first["id"]) == (again["dir"], again["id"]) and again["resume"] == "allow"
    assert tracker.keywords["id"] != first["id"], "another run is another curve"


STUB = """
import os, signal, sys, types
wandb = types.ModuleType("wandb")
class Run:
    def log(self, record, step=None): {log}
    def finish(self, *a, **k): pass
wandb.Settings = dict
def init(**keywords): {init}
wandb.init = init
sys.modules["wandb"] = wandb
"""
KILL = "os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.parametrize(("log", "init"), [(KILL, "return Run()"), ("pass", f"{KILL}; return Run()")])
def test_a_signal_inside_wandb_is_not_taken_for_its_failure(rela: Rela, log: str, init: str) -> None:
    done = rela("train", *WORDS, "epochs=2", "logger=wandb", stub=STUB.format(log=log, init=init), kind="full")
    assert done.returncode == 143, done.stderr


def history(file: Path) -> list[Json]:
    """What wandb has kept of `log`: its own file has protobuf records, in pieces, in blocks like LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    head, block, last = struct.Struct("<IHB"), 32768, (1, 4)  # of a piece: checksum, length, kind
    data, at, piece, found = file.read_bytes(), head.size, b"", list[Json]()
    while at + head.size <= len(data):
        if block - at % block < head.size:
            at += block - at % block
            continue
        _, length, kind = head.unpack_from(data, at)
        piece += data[at + head.size : at + head.size + length]
        at += head.size + length
        if kind in last:
            if items := Record.FromString(piece).history.item:
                found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
            piece = b""
    return found


@pytest.mark.slow
def test_the_real_wandb_without_a_network(rela: Rela, tmp_path: Path) -> None:
    environment = {"WANDB_MODE": "", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40}
    done = rela("train", *WORDS, "logger=wandb", env=environment)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    assert folder is not None
    assert read(folder / "manifest.json")["status"] == "finished"
    assert done.stderr.count("rela: wandb") == 1
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [{key: record[key] for key in wanted} for wanted, record in zip(told, history(file), strict=True)] == told
    assert "x" * 40 not in "".join(p.read_text(errors="ignore") for p in folder.rglob("*") if p.is_file())
