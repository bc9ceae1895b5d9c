"""How many cells a GPU gets, by what the first has taken; a made-up card, and processes that note what it would say."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch

from rela_cli.config.compose import compose
from rela_cli.config.overrides import CommandLine
from rela_cli.errors import is_full
from rela_cli.launch import rank_processes
from rela_cli.launch import room as rooms
from rela_cli.launch import shares as shares_of
from rela_cli.launch.job import Job
from rela_cli.launch.room import CONTEXT_BYTES, MOST, NOTES, MemoryUse, Room, most_cells, shares_there, write_note
from rela_cli.launch.shares import Shares, shares_of_sweep, side_by_side
from rela_cli.machine import device
from rela_cli.pipeline import pipeline
from rela_cli.store.files import read_json, write_json
from tests.conftest import Rela
from tests.launch.test_shares import JOBLIB, PIPELINE, plugin, where

GB = 10**9
FULL = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139 GiB"


def room(folder: Path, most: int = 8, said: int | None = None, name: str = "0") -> Room:
    return Room(name, folder / name, most, said)


def taken(gpu: float, gpu_room: float = 100, host: float = 1, host_room: float | None = 1000) -> MemoryUse:
    return MemoryUse(
        int(gpu * GB), int(gpu_room * GB), int(host * GB), None if host_room is None else int(host_room * GB)
    )


@pytest.mark.parametrize(
    ("note", "cells"),
    [
        (None, 1),
        (taken(10), 8),  # nine tenths of the room are dealt out: 9 by memory, no more than 8
        (taken(20), 4),
        (taken(44), 2),
        (taken(60), 1),
        (taken(200), 1),
        (taken(10, host=100, host_room=300), 2),
        (taken(10, host=100, host_room=None), 8),
    ],
)
def test_how_many_have_room(tmp_path: Path, note: MemoryUse | None, cells: int) -> None:
    card = room(tmp_path)
    if note:
        write_note(card.folder, note)
    assert card.cells() == cells
    assert room(tmp_path, said=3).cells() == 3, "the user's word"


def test_the_largest_need_counts_and_the_room_that_was_there_when_nothing_ran_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = room(tmp_path)
    for pid, note in enumerate((taken(10, 100), taken(28, 40), taken(12, 60))):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        write_note(card.folder, note)
    assert (card.taken(), card.cells()) == (taken(28), 3)


def test_it_is_said_once_by_one_of_all_processes_and_again_when_it_changes(tmp_path: Path) -> None:
    said: list[str] = []
    one, other = room(tmp_path), room(tmp_path)
    one.say(said.append)
    assert not said, "nothing is known yet"
    write_note(one.folder, taken(20))
    for each in (one, other, one):
        each.say(said.append)
    assert said == ["GPU 0: 4 cells side by side (the largest cell so far takes 20.0 GB of 100.0 GB)"]
    write_note(one.folder, taken(60))
    other.say(said.append)
    assert said[1:] == ["GPU 0: one cell at a time (the largest cell so far takes 60.0 GB of 100.0 GB)"]
    few, short = room(tmp_path, most=2, name="1"), room(tmp_path, name="2")
    write_note(few.folder, taken(10))
    write_note(short.folder, taken(10, host=100, host_room=300))
    few.say(said.append)
    short.say(said.append)
    assert said[2].endswith("10.0 GB of 100.0 GB; no more than 2 of them here)")
    assert said[3].endswith("10.0 GB of 100.0 GB; of 300.0 GB of the machine's memory it takes 100.0 GB)")


def test_each_gpu_has_its_first_cell_first(tmp_path: Path) -> None:
    cards = [room(tmp_path, name=name) for name in "07"]
    assert shares_there(cards) == [0, 1]
    write_note(cards[1].folder, taken(30))
    assert shares_there(cards) == [0, 1, 3, 5]
    write_note(cards[0].folder, taken(45))
    assert shares_there(cards) == [0, 1, 2, 3, 5]


def test_cores_say_how_many_there_are_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "cores", lambda: list(range(16)))
    assert [most_cells(gpus, threads) for gpus, threads in ((1, None), (4, None), (1, 4), (2, 16))] == [MOST, 4, 4, 1]


def test_what_a_process_notes_is_what_torch_says_of_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"peak": 5 * GB, "free": 90 * GB, "held": 2 * GB}

    def forget(*_: object) -> None:
        card["peak"] = card["held"]

    def empty() -> None:
        card["free"], card["held"] = card["free"] + 1 * GB, card["held"] - 1 * GB

    monkeypatch.setattr(device, "_reserved_before", 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *_: card["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: card["held"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (card["free"], 140 * GB))
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.delenv(NOTES, raising=False)
    rooms.note()
    assert card["held"] == 2 * GB, "nobody wants to know"
    device.restart_peak_memory(torch.device("cuda"))  # training begins after the prior's pass
    monkeypatch.setenv(NOTES, str(tmp_path / "0"))
    rooms.note()
    found = room(tmp_path).taken()
    assert found and (found.gpu, found.gpu_room) == (5 * GB + CONTEXT_BYTES, 92 * GB + CONTEXT_BYTES)
    assert found.host > 10**7 and (found.host_room is None or found.host_room > found.host)


def test_a_gpu_that_answers_nothing_more_does_not_hide_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    monkeypatch.setenv(NOTES, str(tmp_path / "0"))
    rooms.note()
    assert room(tmp_path).cells() == 1
    assert "cannot be noted (CUDA error: device-side assert triggered), and does not count" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    rooms.note()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "full"),
    [
        (FULL, True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("HIP out of memory. Tried", True),
        ("[Errno 12] Cannot allocate memory", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_how_a_full_gpu_shows(text: str, full: bool) -> None:
    assert is_full(RuntimeError(text)) == is_full(text) == full


# ------------------------------------------------------------------------------------------------ cells of a sweep


@pytest.fixture
def shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shares:
    """Those of one GPU, of which this process has the first."""
    made = Shares(tmp_path / "shares", 4, ("0",), tuple(range(8)), "", (room(tmp_path, 4),))
    monkeypatch.setattr(shares_of, "_taken", None)
    monkeypatch.setattr(shares_of, "confine", lambda *_: None)
    monkeypatch.setenv(NOTES, "")
    made.take()
    return made


def test_cores_are_divided_among_those_that_are_there(shares: Shares) -> None:
    assert (shares.there_now(), shares.of(0)) == ([0], tuple(range(8)))
    write_note(shares.rooms[0].folder, taken(20))
    assert shares.there_now() == [0, 1, 2, 3]
    assert [shares.of(number) for number in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert os.environ[NOTES] == str(shares.rooms[0].folder)


def test_a_cell_that_finds_its_gpu_full_beside_others_runs_again_alone(
    shares: Shares, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one is waited for, and by then nothing holds what the first try had made."""
    card, others, held = shares.rooms[0], threading.Event(), []
    write_note(card.folder, taken(20))
    running = threading.Event()

    def other() -> None:
        with card.used():
            running.set()
            others.wait(0.3)
        held.append("ended")

    class Tensors:
        pass

    def work() -> str:
        if not tries:
            tries.append(1)
            tensors = Tensors()
            tries.append(weakref.ref(tensors))
            raise RuntimeError(FULL)
        assert held == ["ended"] and tries[1]() is None
        return "done"

    tries: list[object] = []
    thread = threading.Thread(target=other)
    thread.start()
    running.wait()
    gc.disable()
    try:
        assert shares.work(work) == "done"
    finally:
        gc.enable()
        thread.join()
    assert "CUDA out of memory): once more, alone" in capsys.readouterr().err


RANKS = """import os, sys, time
from pathlib import Path
from rela_cli.launch.rank_processes import note_full
if os.environ["RANK"] == "1" and not Path(sys.argv[1]).exists():
    Path(sys.argv[1]).touch()
    note_full(RuntimeError("unlike a GPU that is full"))
    note_full(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    sys.exit(1)
while not Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""


def test_so_does_a_cell_of_several_gpus_of_which_one_is_full(
    shares: Shares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that waits for the ranks sees their exit status, and what they have noted; the manifest says it."""

    def start(words: object, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RANKS, str(tmp_path / "tried")], env=environment)

    monkeypatch.setattr(rank_processes, "start", start)
    monkeypatch.setattr(pipeline, "folder_with_work", lambda *_: tmp_path)
    write_json(tmp_path / "manifest.json", {"status": "stopped", "reason": "lost touch", "hash": "1"})
    write_note(shares.rooms[0].folder, taken(20))
    job, asked = Job("train", CommandLine({}, ())), compose(["runtime.devices=2"])
    assert shares.work(lambda: job.made(asked, ())).folder == tmp_path and (tmp_path / "tried").exists()
    why = "process 1 of 2 ended with status 1: CUDA out of memory"
    assert f"the GPU was full beside other cells ({why}): once more" in capsys.readouterr().err
    manifest = read_json(tmp_path / "manifest.json") or {}
    assert manifest["reason"].startswith(why) and (manifest["status"], manifest["hash"]) == ("failed", "1")


def test_a_cell_that_was_alone_is_not_run_again(shares: Shares) -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        write_note(shares.rooms[0].folder, taken(20))  # as the run's end does
        raise RuntimeError(FULL)

    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        shares.work(work)
    assert tries == [1]


BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


@pytest.mark.parametrize(
    ("words", "said", "gpus", "joblib"),
    [
        ([], [], "0", True),
        ([], [], "", False),
        ([], ["hydra/launcher=basic"], "0", False),
        (["runtime=cpu"], [], "0", False),
        (["runtime.cells_per_gpu=1"], [], "0", False),
        (["runtime.cells_per_gpu=1"], [], "0,1", True),
        (["runtime.devices=2"], [], "0", False),
    ],
)
def test_when_a_sweep_goes_side_by_side_by_itself(
    words: list[str], said: list[str], gpus: str, joblib: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(JOBLIB)
    monkeypatch.setattr(rooms, "cores", lambda: list(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert side_by_side(compose(words), BASIC, said) == ["hydra/launcher=joblib"] * joblib


def test_without_joblib_they_go_one_by_one_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rooms, "cores", lambda: list(range(16)))
    monkeypatch.setattr(shares_of, "find_spec", lambda _: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert side_by_side(compose([]), BASIC, []) == []
    assert "pip install 'rela-cli[parallel]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "launcher", "count", "cells"),
    [
        ([], {"_target_": "x.LocalLauncher"}, 16, None),
        (["runtime.cells_per_gpu=3"], {"_target_": "x.LocalLauncher"}, 6, 3),
        (["runtime.cells_at_once=5"], {"_target_": "x.LocalLauncher"}, 5, 3),
        ([], {"_target_": "x.JoblibLauncher", "n_jobs": 4}, 4, 2),
        (["runtime.threads=4"], {"_target_": "x.JoblibLauncher", "n_jobs": -1}, 4, None),
    ],
)
def test_the_users_word_comes_before_the_memory(
    tmp_path: Path, words: list[str], launcher: dict[str, object], count: int, cells: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rooms, "cores", lambda: list(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = shares_of_sweep(compose(words), launcher, tmp_path)
    assert found and (found.count, found.rooms[0].said, len(found.rooms)) == (count, cells, 2)


ON_A_CARD = PIPELINE.replace(
    "    return types",
    """    write_note(notes, MemoryUse(10**9, 100 * 10**9, 1, None))
    return types""",
).replace(
    "    folder.mkdir(parents=True)",
    """    from rela_cli.launch.room import NOTES, MemoryUse, write_note
    folder.mkdir(parents=True, exist_ok=True)
    notes, meeting, end = Path(os.environ[NOTES]), Path(config.paths.outputs) / "meeting", time.monotonic() + 60
    if list(notes.glob("*.json")) and not (folder / "tried").exists():  # not the first cell
        meeting.mkdir(exist_ok=True)
        (meeting / str(config.seed)).touch()
        while len(list(meeting.iterdir())) < 2:
            assert time.monotonic() < end, "nobody runs beside this one"
            time.sleep(0.02)
        try:
            meeting.with_name("full").touch(exist_ok=False)
            (folder / "tried").touch()
        except FileExistsError:
            pass
        if (folder / "tried").exists():
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")""",
)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has one cell at a time")
def test_a_sweep_on_one_gpu(rela: Rela, tmp_path: Path) -> None:
    """Without a word from the user: the first alone, then two at once, of which one finds the GPU full and runs again.

    The second and the third to start wait for each other.
    """
    plugin(JOBLIB)
    stub = f"from rela_cli.launch import room\nroom.MOST = 2\n{ON_A_CARD}"
    done = rela("train", "-m", "seed=0,1,2,3", "budget=0.3", stub=stub, env={"CUDA_VISIBLE_DEVICES": "4"})
    assert done.stdout.splitlines()[-1] == "4 cells: 4 run, 0 found, 0 failed", done.stdout + done.stderr
    found = sorted(where(tmp_path), key=lambda one: one["begun"])
    assert found[0]["ended"] <= found[1]["begun"]
    assert {one["gpu"] for one in found} == {"4"}
    assert len(found[0]["cores"]) == len(os.sched_getaffinity(0)) >= 2 * len(found[-1]["cores"])
    (tried,) = tmp_path.glob("outputs/runs/*/tried")
    again = json.loads(tried.with_name("where.json").read_text())
    assert all(one["ended"] <= again["begun"] or again["ended"] <= one["begun"] for one in found if one != again)
    lines = [line for line in done.stderr.splitlines() if "GPU" in line]
    assert sum("GPU 4: 2 cells side by side" in line for line in lines) == 1, done.stderr
    assert sum("once more, alone" in line for line in lines) == 1
    assert "hydra/launcher=basic has one after the other" in done.stderr
