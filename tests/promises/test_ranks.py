"""Rows 3, 17 and 19 of docs/reliability.md with two ranks: real processes, real signals, real kills, real sockets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from rela_cli.distributed import pulse
from rela_cli.distributed.pulse import Note, StallWatch
from rela_cli.errors import RelaError
from tests import warm
from tests.conftest import ROOT
from tests.promises.helpers import FAKE, RANDOM, SHORT, only, read, start, wait_until

LONG = ("epochs=8", "checkpoint.every_seconds=0", "runtime.eval_every_epochs=0", "runtime.device=cpu")
TWO = ("train", *FAKE, *SHORT, *RANDOM, *LONG)
pytestmark = pytest.mark.slow


def begun(folder: Path, process: Any, step: int = 5) -> None:
    """Wait until a few steps are done and saved."""

    def is_there() -> bool:
        assert process.poll() is None, process.communicate()
        return any(int(p.name.split("-")[1]) >= step for p in folder.glob("outputs/runs/*/checkpoint-*.safetensors"))

    wait_until(is_there)


def pid_of(folder: Path, rank: int) -> int:
    """Of a rank that `rela` has started; its notes lie in the temporary folder."""
    return int(only(folder, f"rela-*/pid-{rank}").read_text())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening(pid: int) -> set[str]:
    """The addresses at which a process waits for somebody to connect, as the kernel has them."""
    named = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    own = {name.removeprefix("socket:[").rstrip("]") for name in named}
    lines = [
        line.split() for table in Path(f"/proc/{pid}/net").glob("tcp*") for line in table.read_text().splitlines()[1:]
    ]
    return {words[1].partition(":")[0] for words in lines if words[3] == "0A" and words[9] in own}


def test_nothing_listens_but_to_this_machine_and_nothing_is_left(tmp_path: Path) -> None:
    """All that is ever unpickled or believed would come through a socket; what they meet by only this user can open."""
    (tmp_path / "tmp").mkdir()
    process = start(
        tmp_path, *TWO, "runtime.devices=2", env={"TMPDIR": str(tmp_path / "tmp"), "GLOO_SOCKET_IFNAME": ""}
    )
    begun(tmp_path, process)
    pids = [process.pid, *(pid_of(tmp_path / "tmp", rank) for rank in range(2))]
    found = [listening(pid) for pid in pids]
    assert found[0] == set() and found[1] == found[2] == {"0100007F"}, "127.0.0.1, in the kernel's order of bytes"
    assert only(tmp_path / "tmp", "rela-*").stat().st_mode & 0o777 == 0o700
    process.terminate()
    assert process.wait(60) == 143
    left = {path.name for path in (tmp_path / "tmp").iterdir()}
    assert {name for name in left if not name.startswith("torchinductor_")} == set(), "that one is torch's, of a user"


def again(folder: Path, *words: str) -> tuple[str, dict[str, object]]:
    """The command once more, to its end: what it said, and its result."""
    process = start(folder, *TWO, *words)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return output, read(only(folder, "outputs/runs/fake*/result.json"))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_lets_both_save_and_leave(tmp_path: Path, signum: int, status: int) -> None:
    process = start(tmp_path, *TWO, "runtime.devices=2", env={"TMPDIR": str(tmp_path)})
    begun(tmp_path, process)
    pids = [pid_of(tmp_path, rank) for rank in range(2)]
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert error.count("the same command goes on from step") == 1, "one of them speaks"
    assert not any(map(is_alive, pids))
    assert read(only(tmp_path, "outputs/runs/fake*/manifest.json"))["status"] == "stopped"
    if signum == signal.SIGTERM:
        output, result = again(tmp_path, "runtime.devices=1")
        assert "resumed at step" in output, "one process goes on where two have stopped"
        assert (result["world_size"], result["batch_per_rank"]) == (1, 16)


def test_a_second_signal_leaves_nobody_behind(tmp_path: Path) -> None:
    process = start(tmp_path, *TWO, "runtime.devices=2", env={"TMPDIR": str(tmp_path)})
    begun(tmp_path, process)
    pids = [pid_of(tmp_path, rank) for rank in range(2)]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGKILL)  # nobody is left to hand anything on
    process.communicate(timeout=60)
    wait_until(lambda: not any(map(is_alive, pids)), 40)
    wait_until(lambda: not list(tmp_path.glob("rela-*")), 10)


def test_a_killed_rank_ends_the_run_which_goes_on_later(tmp_path: Path) -> None:
    process = start(tmp_path, *TWO, "runtime.devices=2", env={"TMPDIR": str(tmp_path)})
    begun(tmp_path, process)
    other = pid_of(tmp_path, 0)
    killed = time.monotonic()
    os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 1
    assert "process 1 of 2 ended without a word (killed, or out of memory)" in error
    assert not is_alive(other)
    output, result = again(tmp_path, "runtime.devices=2")
    assert "resumed at step" in output
    assert (result["world_size"], result["batch_per_rank"], result["steps"]) == (2, 8, 24)


def less_patience() -> None:
    pulse.QUIET, pulse.LIMIT = 2, 5


def test_a_hung_rank_is_named_and_the_run_ends(tmp_path: Path) -> None:
    """Hung without a signal: the other waits inside torch, and only who started both can say so."""
    process = start(tmp_path, *TWO, "runtime.devices=2", env={"TMPDIR": str(tmp_path)}, before=less_patience)
    begun(tmp_path, process)
    pids = [pid_of(tmp_path, rank) for rank in range(2)]
    os.kill(pids[1], signal.SIGSTOP)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    hung = rf"waits for process 1 of 2 \(pid {pids[1]}, last at (?:stage train|step \d+ of 24)\), which does not answer"
    assert len(re.findall(hung, error)) >= 2, error
    assert "the same command goes on from the last checkpoint" in error
    assert not any(map(is_alive, pids)) and not list(tmp_path.glob("rela-*"))


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (
            Note(waits=1, place="stage extract"),
            Note(place="stage extract"),
            "process 1 of 2 (pid 8, last at stage extract)",
        ),
        (Note(place="step 3 of 9", in_steps=True), Note(waits=1), "process 0 of 2 (pid 7, last at step 3 of 9)"),
        (Note(place="stage extract"), Note(waits=1), None),  # it may decode, or wait for another run's lock
    ],
)
def test_who_answers_and_does_not_go_on(tmp_path: Path, first: Note, second: Note, named: str | None) -> None:
    said: list[str] = []
    watch = StallWatch(tmp_path, [7, 8], said.append)
    for _ in range(200):
        for rank, note in enumerate((first, second)):
            note.pulse += 1
            (tmp_path / f"at-{rank}").write_text(json.dumps(asdict(note)))
        watch.looked -= 1.0
        watch.look([0, 1])
    assert len(said) == (2 if named else 0), "after 60 s and after 120 s"
    assert all(f"waits for {named}, which answers but does not go on; after 360 minutes" in words for words in said)


def test_between_steps_the_patience_is_that_of_runtime_hang_minutes(tmp_path: Path) -> None:
    """Elsewhere a process may work for hours while the others wait."""
    said: list[str] = []
    for in_steps in (False, True):
        watch = StallWatch(tmp_path, [7, 8], said.append, step_limit=120.0)
        notes = Note(waits=1, place="step 3 of 9", in_steps=in_steps), Note(place="step 2 of 9", in_steps=in_steps)

        def look(watch: StallWatch = watch, notes: tuple[Note, Note] = notes) -> None:
            for rank, note in enumerate(notes):
                note.pulse += 1
                (tmp_path / f"at-{rank}").write_text(json.dumps(asdict(note)))
            watch.looked -= 1.0
            watch.look([0, 1])

        for _ in range(118):
            look()
        assert "after 2 minutes of it" in said[-1] if in_steps else "after 360 minutes of it" in said[-1]
    with pytest.raises(RelaError, match=r"waits for process 1 of 2 \(pid 8, last at step 2 of 9\).*Ended"):
        for _ in range(4):
            look()


def test_where_torchrun_has_started_them_the_first_two_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By notes in torchrun's store; here the second process hangs between steps, and answers."""
    store, left = HashStore(), threading.Event()
    monkeypatch.setattr(pulse, "EVERY", 0.001)
    monkeypatch.setattr(pulse, "this_process", Note(waits=1, place="step 3 of 9", in_steps=True))
    monkeypatch.setattr(os, "_exit", lambda status: left.set() if status == 1 else None)
    store.set("at-1", json.dumps(asdict(Note(place="step 2 of 9", in_steps=True))))
    store.set("who-1", "other, pid 8")
    with pulse.watched_by_themselves(store, 0, 2, print, step_limit=0.05):
        assert left.wait(20)
    said = r"error: nothing has moved .* process 1 of 2 \(other, pid 8, last at step 2 of 9\), .*Ended; the"
    assert re.match(said, capsys.readouterr().err)


def test_torchrun_starts_it_again_and_it_goes_on(tmp_path: Path) -> None:
    """torchrun's own command line and restarts; and the features that both have made are those of one process."""
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "tests.promises.as_rank", *TWO]
    env = {"PYTHONPATH": str(ROOT), "RELA_STATUS": str(tmp_path), warm.SERVER: warm.server("full")}
    process = warm.call(warm.run_module, "torch.distributed.run", words, folder=tmp_path, env={**os.environ, **env})
    begun(tmp_path, process)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    assert process.wait(timeout=240) == 0, process.communicate()
    manifest = read(only(tmp_path, "outputs/runs/fake*/manifest.json"))
    assert manifest["status"] == "finished"
    assert len(manifest["resumes"]) == 1
    alone = start(tmp_path, "extract", *TWO[1:], "paths.outputs=alone", env={"OMP_NUM_THREADS": "1"})
    assert alone.wait(timeout=120) == 0
    digests = [
        hashlib.sha256(only(tmp_path, f"{place}/cache/features/*/train.safetensors").read_bytes()).digest()
        for place in ("outputs", "alone")
    ]
    assert digests[0] == digests[1]
