"""`rela watch`: what it says of runs that come, go on, fail and end; and whom it answers."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rela_cli.commands.watch import state as states
from rela_cli.commands.watch.command import main
from rela_cli.commands.watch.server import Server
from rela_cli.commands.watch.state import Watcher
from rela_cli.commands.watch.text import columns_of, drawn, left
from rela_cli.errors import ConfigError
from rela_cli.store.locks import RunLock

ODD = "<img src=x onerror=document.title='taken'>"
RESULT = {"probe": {"lbfgs": {"top1": 0.5}}, "seconds": {"train": 60.0}, "epochs": 4}


def make_run(outputs: Path, name: str, status: str = "running", records: int = 2, **facts: Any) -> Path:
    """A run folder as a run leaves it."""
    folder = outputs / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"status": status, "created": "2026-01-02T03:04:05+0000", "command": "rela train", **facts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text("budget: 0.5\nepochs: 4\n")
    lines = [
        {"step": 10 * n, "epoch": n, "phase": 1 + (n > 1), "loss": 1 / n, "knn": 0.25 * n, "rho": None}
        for n in range(1, records + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "finished":
        (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def by_name(watcher: Watcher) -> dict[str, Any]:
    return {run["name"]: run for run in watcher.state()["runs"]}


# ---------------------------------------------------------------------------------------------------------------- state


def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    assert watcher.state()["runs"] == []
    with RunLock(make_run(tmp_path, "one", records=0)):
        assert by_name(watcher)["one"] | {"status": "running", "epoch": 0, "epochs": 4} == by_name(watcher)["one"]
        make_run(tmp_path, "one", records=2)
        seen = by_name(watcher)["one"]
        assert (seen["epoch"], seen["loss"], seen["knn"], seen["phase"]) == (2, 0.5, 0.5, 2)
        assert watcher.curve("one") == [[10, 1.0, 1], [20, 0.5, 2]]
    assert by_name(watcher)["one"]["status"] == "killed", "its process is gone, and its manifest says nothing of it"
    make_run(tmp_path, "one", status="finished", records=4)
    seen = by_name(watcher)["one"]
    assert (seen["status"], seen["epoch"], seen["top1"]) == ("finished", 4, {"lbfgs": 0.5})
    assert watcher.curve("two") is None


def test_runs_at_work_come_first_then_failures_then_the_newest(tmp_path: Path) -> None:
    make_run(tmp_path, "old", "finished", created="2026-01-01T00:00:00+0000")
    make_run(tmp_path, "new", "finished", created="2026-01-03T00:00:00+0000")
    make_run(tmp_path, "failed", "failed", reason="no room", created="2025-01-01T00:00:00+0000")
    with RunLock(make_run(tmp_path, "running", created="2024-01-01T00:00:00+0000")):
        assert [run["name"] for run in Watcher(tmp_path).state()["runs"]] == ["running", "failed", "new", "old"]


def test_files_are_read_again_only_when_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = states.read_run
    monkeypatch.setattr(states, "read_run", lambda folder, stamp: read.append(folder.name) or original(folder, stamp))
    for name in "abc":
        make_run(tmp_path, name, "finished")
    watcher = Watcher(tmp_path)
    watcher.state()
    watcher.state()
    assert read == ["a", "b", "c"]
    make_run(tmp_path, "b", "finished", records=3)
    watcher.state()
    assert read == ["a", "b", "c", "b"]


@pytest.mark.parametrize("name", states.WATCHED_FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"step": "x"}\n{"epoch": []}\n'])
def test_damaged_and_half_written_files_hide_no_other_run(tmp_path: Path, name: str, content: bytes) -> None:
    make_run(tmp_path, "good", "finished")
    (make_run(tmp_path, "bad", "finished") / name).write_bytes(content)
    runs = by_name(Watcher(tmp_path))
    assert set(runs) == {"good", "bad"}
    assert runs["good"]["top1"] == {"lbfgs": 0.5}


def test_a_run_that_goes_while_it_is_watched(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    folder = make_run(tmp_path, "one", "finished")
    assert set(by_name(watcher)) == {"one"}
    shutil.rmtree(folder)
    assert by_name(watcher) == {}
    assert watcher.curve("one") is None


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    rows = [[n, float(n), 1] for n in range(10_001)]
    thin = states.thinned(rows)
    assert len(thin) == states.CURVE_POINTS
    assert (thin[0], thin[-1]) == (rows[0], rows[-1])


def test_no_secret_reaches_the_page(tmp_path: Path) -> None:
    make_run(tmp_path, "one", command="rela train dataset.root=s3://user:not-for-anybody@bucket/x")
    assert "not-for-anybody" not in json.dumps(Watcher(tmp_path).state())


# --------------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(Watcher(tmp_path), 0)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)  # type: ignore[misc]
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_what_the_page_asks_for_is_answered(server: Server, tmp_path: Path) -> None:
    make_run(tmp_path, "one", "finished")
    base = f"/{server.token}/"
    assert "watch.js" in get(server, base)[1]
    for name in ("watch.js", "watch.css", "page.css"):
        assert get(server, base + name)[0] == 200
    status, text = get(server, base + "state.json")
    assert status == 200
    assert [run["name"] for run in json.loads(text)["runs"]] == ["one"]
    assert json.loads(get(server, base + "curve.json?run=one")[1]) == [[10, 1.0, 1], [20, 0.5, 2]]
    assert get(server, base + "curve.json?run=two")[0] == 404
    assert get(server, base + "table.html")[0] == 200


def test_nan_is_null_in_json(server: Server, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "one")
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "phase": 1, "loss": NaN}\n')
    text = get(server, f"/{server.token}/state.json")[1]
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/state.json", {}),
        ("/wrong-token/state.json", {}),
        ("/TOKEN/../../etc/passwd", {}),
        ("/TOKEN/state.py", {}),
        ("/TOKEN/state.json", {"Origin": "http://evil.example"}),
        ("/TOKEN/state.json", {"Origin": "null"}),
        ("/TOKEN/state.json", {"Sec_Fetch_Site": "cross-site"}),
        ("/TOKEN/state.json", {"Host": "evil.example"}),
    ],
)
def test_nobody_else_is_answered(server: Server, tmp_path: Path, path: str, headers: dict[str, str]) -> None:
    make_run(tmp_path, "one")
    status, text = get(server, path.replace("TOKEN", server.token), **headers)
    assert (status, text) == (404, "not found\n")


def test_only_get_is_answered_and_only_on_this_machine(server: Server) -> None:
    assert get(server, f"/{server.token}/state.json", method="POST")[0] == 501
    assert server.server_address[0] == "127.0.0.1"


def test_a_tunnel_to_another_port_works(server: Server) -> None:
    """ssh -L 9000:127.0.0.1:8600 makes the browser say localhost:9000."""
    assert get(server, f"/{server.token}/", Host="localhost:9000")[0] == 200


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_names_are_text_in_a_real_browser(server: Server, tmp_path: Path) -> None:
    make_run(tmp_path, ODD, "failed", reason="<b>no room</b>\nin the second line")
    make_run(tmp_path, "done", "finished")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path}/c",
    )
    page = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", server.address], capture_output=True, text=True, timeout=120
    ).stdout
    assert "<title>rela watch</title>" in page, page
    assert "&lt;img src=x" in page and "<img" not in page
    assert "&lt;b&gt;no room" in page
    assert "1 failed, 1 finished" in page


# ----------------------------------------------------------------------------------------------------------------- text


def text_of(outputs: Path, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, record=True, file=io.StringIO())
    console.print(drawn(Watcher(outputs).state(), width, rows=None))
    return console.export_text()


def test_runs_as_text(tmp_path: Path) -> None:
    make_run(tmp_path, "one", "finished", records=4)
    make_run(tmp_path, "two", "failed", reason="no room\nmore")
    text = text_of(tmp_path)
    assert text.splitlines()[0].strip() == "1 failed, 1 finished"
    assert text.splitlines()[1].split()[-2:] == ["left", "lbfgs"]
    assert "50.0" in text and "4/4" in text
    assert "two: no room" in text


def test_long_names_lose_their_middle_at_80_columns(tmp_path: Path) -> None:
    make_run(tmp_path, "cifar10-a-prior-with-a-long-name-resnet18-simclr-b0.5-s1-12345678", "finished", records=4)
    _, heads, row, *_ = text_of(tmp_path, width=80).splitlines()
    assert row.startswith("cifar10-a-prior-...") and "-s1-12345678 " in row and "4/4" in row
    assert "images/s" not in heads and row.rstrip().endswith("50.0")


def test_at_80_columns_the_runs_of_a_sweep_are_told_apart(tmp_path: Path) -> None:
    """What all names share is said once."""
    names = [
        f"cifar-{prior}-resnet18-simclr-b0.5-s{seed}-1234567{seed}" for prior in ("none", "embedded") for seed in (0, 1)
    ]
    for name in names:
        make_run(tmp_path, name, "finished", records=4)
    count, shared, _, *rows = text_of(tmp_path, width=80).splitlines()
    assert count.strip() == "4 finished" and shared.strip() == "all of them: cifar, resnet18, simclr, b0.5"
    assert {row.split()[0] for row in rows} == {f"{p}-s{s}-1234567{s}" for p in ("none", "embedded") for s in (0, 1)}
    assert all(len(row.rstrip()) <= 80 for row in rows)


def test_protocols_that_differ_are_named_in_each_row() -> None:
    runs = [
        {"status": "finished", "epoch": 4, "epochs": 4, "began": None, "top1": top1}
        for top1 in ({"knn": 0.5}, {"lbfgs": 0.25}, {})
    ]
    assert [cell.plain for cell in columns_of(runs, now=0.0)["top-1"]] == ["50.0 knn", "25.0 lbfgs", ""]


def test_the_time_that_is_left() -> None:
    run = {"status": "running", "epoch": 10, "epochs": 40, "began": 1000.0}
    assert left(run, now=1060.0) == "3.0 min"
    assert left({**run, "status": "finished"}, now=1060.0) == ""
    assert left({**run, "epoch": 0}, now=1060.0) == ""


def test_without_a_terminal_text_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--text"]) == 0
    out, error = capsys.readouterr()
    assert "no runs yet" in out
    assert f"there are no runs in {tmp_path} yet" in error


def test_a_port_that_is_taken_or_none(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--port=\d+ cannot be used .* leave --port out"):
        main([str(tmp_path), f"--port={server.server_address[1]}"])
    with pytest.raises(ConfigError, match="--port=x must be a number from 0 to 65535"):
        main(["--port=x"])
