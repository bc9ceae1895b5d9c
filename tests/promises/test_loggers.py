"""No network, no login, a tracker that dies or hangs in mid-run: the run is not touched, and there is one warning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from rela_cli.training.trackers import run
from rela_cli.training.trackers.wandb import open_wandb
from tests.factories import config
from tests.promises.helpers import FAKE, RANDOM, SHORT, WORDS, go, only, read, start, wait_until

LONG = (*FAKE, *SHORT, *RANDOM, "epochs=40", "runtime.eval_every_epochs=0")


def tracker(log: Any = lambda *a, **k: None, finish: Any = lambda *a, **k: None) -> types.ModuleType:
    """Stands for the wandb module."""
    module = types.ModuleType("wandb")
    module.Settings = dict  # type: ignore[attr-defined]
    module.init = lambda **_: types.SimpleNamespace(log=log, finish=finish)  # type: ignore[attr-defined]
    return module


def hang(*_: object, **__: object) -> None:
    time.sleep(600)


@pytest.mark.parametrize("where", ["log", "finish"])
def test_a_tracker_that_hangs_holds_nobody_up(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", tracker(**{where: hang}))
    monkeypatch.setattr(run, "FINISH_SECONDS", 0.2)
    folder = go(tmp_path, *WORDS, "epochs=3", "logger=wandb").folder
    assert folder is not None
    assert read(folder / "manifest.json")["status"] == "finished"
    assert (folder / "metrics.jsonl").read_text().count("\n") == 3
    assert capsys.readouterr().err.count("rela: wandb did not finish within 0.2 s; metrics.jsonl has everything") == 1


def test_how_long_it_is_waited_for_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Half a minute, handed to the thread; the test itself waits for nothing."""
    waited: list[float] = []
    hanging = run.Tracker("wandb", types.SimpleNamespace(log=lambda *a, **k: None, finish=lambda succeeded: None))
    hanging.thread = types.SimpleNamespace(join=waited.append, is_alive=lambda: True)  # type: ignore[assignment]
    run.close([hanging], succeeded=True)
    assert waited == [pytest.approx(30, abs=0.5)]
    assert "rela: wandb did not finish within 30 s; metrics.jsonl has everything" in capsys.readouterr().err


def test_how_long_it_is_waited_for_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds, which wandb itself counts; then it is tried offline, and then done without."""
    asked: list[tuple[str, float]] = []

    def init(mode: str, settings: dict[str, Any], **_: object) -> None:
        asked.append((mode, settings["init_timeout"]))
        raise TimeoutError

    module = tracker()
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    made = config(*WORDS, "logger=wandb", "logger.mode=online")
    assert open_wandb(made, tmp_path) is None
    assert asked == [("online", 10), ("offline", 10)]


def test_a_tracker_does_not_change_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", tracker(log=lambda *a, **k: 1 / 0))
    kept = [go(tmp_path / name, *WORDS, f"logger={name}").folder for name in ("none", "wandb")]
    assert kept[0] and kept[1]
    assert kept[0].name == kept[1].name
    one, other = ((folder / "backbone.safetensors").read_bytes() for folder in kept if folder)
    assert one == other


SERVER = """
import json, os, signal
from http.server import BaseHTTPRequestHandler, HTTPServer

ANSWERS = {"create": {"experiment_id": "1", "run": {"info": {"run_id": "ab", "run_uuid": "ab", "experiment_id": "1"}}}}

class Mlflow(BaseHTTPRequestHandler):
    batches = 0

    def do_GET(self):
        self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Mlflow.batches += bool(said.get("metrics"))
        if Mlflow.batches == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.answer(200, ANSWERS.get(self.path.rpartition("/")[2], {}))

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *words):
        pass

server = HTTPServer(("127.0.0.1", 0), Mlflow)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_an_mlflow_server_killed_in_mid_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies at the second epoch, by SIGKILL: the run says so once, and its weights are those of a run without it."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        words = ("logger=mlflow", f"logger.uri=http://127.0.0.1:{int(server.stdout.readline())}")
        tracked = go(tmp_path / "mlflow", *WORDS, "epochs=3", *words).folder
        server.wait(60)
    assert server.returncode == -signal.SIGKILL
    alone = go(tmp_path / "none", *WORDS, "epochs=3").folder
    assert tracked and alone
    assert (tracked / "mlflow.id").read_text() == "ab"
    assert capsys.readouterr().err.count("rela: mlflow stopped working") == 1
    assert read(tracked / "manifest.json")["status"] == "finished"
    assert (tracked / "metrics.jsonl").read_text().count("\n") == 3
    assert (tracked / "backbone.safetensors").read_bytes() == (alone / "backbone.safetensors").read_bytes()


def children(pid: int) -> list[int]:
    """wandb's own processes below ours."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"wandb" in place.joinpath("cmdline").read_bytes():
                found.append(int(place.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for wandb's process in /proc")
def test_the_real_wandb_killed_in_mid_run(tmp_path: Path) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_API_KEY": "x" * 40, "HOME": str(tmp_path)}
    process = start(tmp_path, "train", *LONG, "logger=wandb", "logger.mode=offline", env=environment)
    runs = tmp_path / "outputs" / "runs"
    training = lambda: list(runs.glob("fake-*/metrics.jsonl")) and children(process.pid)  # noqa: E731
    wait_until(lambda: process.poll() is not None or training())
    assert process.poll() is None, process.communicate()
    for pid in children(process.pid):
        os.kill(pid, signal.SIGKILL)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, (out, error)
    folder = only(tmp_path / "outputs" / "runs", "fake-*")
    assert read(folder / "manifest.json")["status"] == "finished"
    assert (folder / "metrics.jsonl").read_text().count("\n") == 40
    assert error.count("rela: wandb stopped working") == 1, error
    assert "Traceback" not in error, error
