"""Row 3 of docs/reliability.md: a signal lets the step end, saves, and leaves; a second one just leaves."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rela_cli import cli
from rela_cli.commands import ls
from rela_cli.machine import signals
from rela_cli.stages import extract
from rela_cli.training import checkpoint
from rela_cli.training.trainer import Trainer
from tests.conftest import ROOT
from tests.promises.harness import RUN, Process, call, differing, finish, left, run_folder, spawn, temporaries

CODES = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGHUP, 129)]
BALLAST = 3 << 29  # bytes, twice what a process of RUN takes
AT = 10  # the step in which the signal comes; the interval is never over by then


def pausing(wait: Callable[[], bool]) -> None:
    """In step 10 say so, then wait."""
    update = Trainer.update

    def paused(self: Trainer) -> None:
        if self.position.step == AT:
            Path("there").touch()
            while not wait():
                time.sleep(0.01)
        update(self)

    Trainer.update = paused  # type: ignore[method-assign]


def until_heard() -> None:
    pausing(lambda: bool(signals._deferred))


def for_ever() -> None:
    pausing(lambda: bool(signals._deferred) and bool(Path("heard").touch()))


def extract_for_ever() -> None:
    def hang(*_: object) -> None:
        Path("there").touch()
        time.sleep(600)

    extract.extract = hang  # type: ignore[assignment]


def wait_for(path: Path, process: Process) -> None:
    while not path.exists():
        assert process.poll() is None, (path.parent / "err").read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert call(folder, "train", *RUN) == 0
    return left(folder)


@pytest.mark.parametrize(("signum", "status"), CODES)
def test_saved_at_the_end_of_the_step(tmp_path: Path, expected: dict[str, Any], signum: int, status: int) -> None:
    process = spawn(tmp_path, "train", *RUN, before=until_heard)
    wait_for(tmp_path / "there", process)
    os.kill(process.pid, signum)
    assert finish(process) == status
    error, folder = (tmp_path / "err").read_text(), run_folder(tmp_path)
    name = signal.Signals(signum).name
    assert error.splitlines() == [
        f"rela: {name}: the step is ended, then all is saved; a second signal ends it at once",
        f"rela: stopped by {name}; the same command goes on from step {AT} of 24",
    ]
    assert len(list(folder.glob(f"checkpoint-{AT:010}-*.safetensors"))) == 1
    assert json.loads((folder / "manifest.json").read_text())["status"] == "stopped"
    assert not {"result.json", "backbone.safetensors"} & {path.name for path in folder.iterdir()}
    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs" / "cache").rglob("*.safetensors")}
    assert call(tmp_path, "train", *RUN) == 0
    assert {path: path.stat().st_mtime_ns for path in cached} == cached
    assert f"resumed at step {AT} of 24" in (tmp_path / "out").read_text()
    assert differing(left(tmp_path), expected) == []
    assert temporaries(tmp_path / "outputs") == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], "reason" in manifest, len(manifest["resumes"])) == ("finished", False, 1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_second_one_leaves_at_once(tmp_path: Path, signum: int) -> None:
    process = spawn(tmp_path, "train", *RUN, before=for_ever)
    wait_for(tmp_path / "there", process)
    os.kill(process.pid, signal.SIGTERM)
    wait_for(tmp_path / "heard", process)
    assert process.poll() is None
    os.kill(process.pid, signum)
    assert finish(process) == -signum
    assert not list(run_folder(tmp_path).glob("checkpoint-*")), "it did not wait for the step"


def test_outside_training_the_first_one_leaves_at_once(tmp_path: Path) -> None:
    process = spawn(tmp_path, "train", *RUN, before=extract_for_ever)
    wait_for(tmp_path / "there", process)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 143
    assert "goes on from the last whole block of the extraction" in (tmp_path / "err").read_text()
    assert temporaries(tmp_path / "outputs") == []


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path, expected: dict[str, Any]) -> None:
    process = spawn(tmp_path, "train", *RUN, before=ignoring)
    wait_for(tmp_path / "there", process)
    os.kill(process.pid, signal.SIGHUP)
    (tmp_path / "go").touch()
    assert finish(process) == 0
    assert (tmp_path / "err").read_text() == ""
    assert differing(left(tmp_path), expected) == []


def ignoring() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pausing(lambda: Path("go").exists())


def starting_for_ever() -> None:
    def hang(*_: object) -> None:
        Path("there").touch()
        time.sleep(600)

    checkpoint.Checkpoints.latest = hang  # type: ignore[assignment, method-assign]


def test_at_the_start_the_step_of_the_checkpoint_is_said(tmp_path: Path) -> None:
    for before, words in ((until_heard, f"step {AT} of 24"), (starting_for_ever, f"step {AT} of 24")):
        process = spawn(tmp_path, "train", *RUN, before=before)
        wait_for(tmp_path / "there", process)
        os.kill(process.pid, signal.SIGTERM)
        assert finish(process) == 143
        assert (tmp_path / "err").read_text().endswith(f"stopped by SIGTERM; the same command goes on from {words}\n")
        (tmp_path / "there").unlink()


@pytest.mark.parametrize(("signum", "status"), CODES)
def test_every_command_says_what_has_stopped_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signum: int, status: int
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(ls, "main", lambda _: (os.kill(os.getpid(), signum), time.sleep(60)))
    try:
        assert cli.main(["ls"]) == status
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith("rela: stopped")


def test_what_is_said_to_a_closed_terminal_is_no_error() -> None:
    """A terminal of its own that closes: the run saves, and leaves with 129."""
    code = (
        "import os, signal, time\nfrom rela_cli.machine import signals\n"
        "try:\n    with signals.between():\n        print('there', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt as error:\n    print('saved', flush=True); os._exit(error.exit_code)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)})
    while b"there" not in os.read(terminal, 1000):
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129


def with_ballast() -> None:
    """A process that has once held 1.6 GB."""
    bytes(1) * BALLAST
    until_heard()


def test_seconds_add_up_and_the_most_memory_counts(tmp_path: Path) -> None:
    """What the first process spent in step 10 is on the account of the whole; so is the memory that it had."""
    began = time.monotonic()
    process = spawn(tmp_path, "train", *RUN, before=with_ballast)
    wait_for(tmp_path / "there", process)
    time.sleep(2)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 143
    assert call(tmp_path, "train", *RUN) == 0
    result = json.loads((run_folder(tmp_path) / "result.json").read_text())
    assert 2 <= result["seconds"]["train"] <= time.monotonic() - began
    assert result["peak_memory_bytes"] >= BALLAST


@pytest.mark.parametrize("context", [signals.stoppable, signals.between, signals.collected])
def test_in_a_thread_they_are_somebody_elses(context: Callable[[], Any]) -> None:
    """Only the main thread may set handlers; the work is done all the same, and afterwards all is as before."""
    before, seen = list(map(signal.getsignal, signals.CAUGHT)), []

    def work() -> None:
        with context():
            seen.append(list(map(signal.getsignal, signals.CAUGHT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
    work()
    assert seen[1] != before, "in the main thread it does set them"
    assert list(map(signal.getsignal, signals.CAUGHT)) == before


@pytest.mark.parametrize(("signum", "status"), CODES)
def test_a_table_hears_of_the_first_and_dies_of_the_second(signum: int, status: int) -> None:
    with signals.collected() as caught:
        assert signal.getsignal(signum) != signal.SIG_DFL, "it would end the tests"
        os.kill(os.getpid(), signum)
        assert [stopped.exit_code for stopped in caught] == [status]
        assert [signal.getsignal(each) for each in signals.CAUGHT] == [signal.SIG_DFL] * 4


@pytest.mark.parametrize(("signum", "status"), CODES)
def test_between_two_cells_it_is_raised(signum: int, status: int) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run under nohup ignores it
    try:
        with pytest.raises(KeyboardInterrupt) as caught, signals.between():
            assert signal.getsignal(signum) != signal.SIG_DFL, "it would end the tests"
            os.kill(os.getpid(), signum)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert getattr(caught.value, "exit_code", 130) == status
