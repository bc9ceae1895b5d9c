"""Artifacts: damaged ones are found before they are read, one process makes them, another takes over."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rela_cli.errors import MissingError, RelaError
from rela_cli.store.entries import Entry, sweep_up
from rela_cli.store.files import Facts, read_json, write_json
from rela_cli.store.integrity import damage
from rela_cli.store.locks import Lock, RunLock
from tests.promises.helpers import FAKE, SHORT, WORDS, flip, go, only, python, read, start, wait_until

HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
DATA = bytes(range(256)) * 40


def fill(folder: Path) -> Facts:
    (folder / "train.safetensors").write_bytes(DATA)
    return {"seconds": 1.5}


def whole(size: bytes) -> bytes:
    return size + b" " * (len(DATA) - len(size))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(DATA[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a flipped bit": flip,
    "a flipped bit in front": lambda path: flip(path, 0),
    "a web page": lambda path: path.write_bytes(HTML),
    "a web page of the same size": lambda path: path.write_bytes(whole(HTML)),
    "a git-lfs pointer": lambda path: path.write_bytes(POINTER),
}
BROKEN_MANIFESTS = ["", "{", "[]", "null", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"../../x": {}}}', "\0"]


# ----------------------------------------------------------------------------------------------------------- corruption


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_entry_is_set_aside_and_made_again_loudly(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Entry("features", {"a": 1}, tmp_path)
    entry.make(fill)
    DAMAGES[how](entry.folder / "train.safetensors")
    if how in ("gone", "truncated", "empty"):
        assert entry.manifest is None, "sizes tell"
    assert entry.make(fill) is True
    assert (entry.folder / "train.safetensors").read_bytes() == DATA
    assert (tmp_path / "features" / f"{entry.hash}.corrupt").is_dir()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in (str(entry.folder), "train.safetensors", f"set aside as {entry.hash}.corrupt and made again"):
        assert part in said
    assert entry.make(fill) is False


@pytest.mark.parametrize("text", BROKEN_MANIFESTS)
def test_a_damaged_manifest_too(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = Entry("features", {"a": 1}, tmp_path)
    entry.make(fill)
    (entry.folder / "manifest.json").write_text(text)
    assert entry.manifest is None
    assert entry.make(fill) is True
    assert "manifest.json cannot be read" in capsys.readouterr().err
    assert entry.manifest is not None


def test_contents_are_hashed_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.store import integrity

    entry = Entry("features", {"a": 1}, tmp_path)
    entry.make(fill)
    hashed: list[Path] = []
    original = integrity.file_sha256
    monkeypatch.setattr(integrity, "_hashes", {})
    monkeypatch.setattr(integrity, "file_sha256", lambda path: hashed.append(path) or original(path))
    assert entry.manifest is not None
    assert hashed == [], "whether it is there is told by sizes"
    for _ in range(3):
        entry.make(fill)
    assert [path.name for path in hashed] == ["train.safetensors"]


def test_a_large_file_is_hashed_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process believes the one before; not when a program has been at the file, nor tomorrow."""
    from rela_cli.store import integrity

    entry = Entry("features", {"a": 1}, tmp_path)
    entry.make(fill)
    large = entry.folder / "train.safetensors"
    hashed: list[Path] = []
    original = integrity.file_sha256
    monkeypatch.setattr(integrity, "file_sha256", lambda path: hashed.append(path) or original(path))
    monkeypatch.setattr(integrity, "REMEMBERED_BYTES", 1)

    def hashes_of_another_process() -> int:
        integrity._hashes.clear()
        hashed.clear()
        damage(entry.folder, contents=True)
        return len(hashed)

    assert [hashes_of_another_process() for _ in range(2)] == [1, 1], "just written: too young to tell"
    monkeypatch.setattr(integrity, "RACY", -1.0)
    assert [hashes_of_another_process() for _ in range(3)] == [1, 0, 0]
    (entry.folder / integrity.INTACT).write_text("[")
    assert [hashes_of_another_process() for _ in range(2)] == [1, 0], "a broken note is no note"
    monkeypatch.setattr(integrity, "DAY", 0.0)
    assert hashes_of_another_process() == 1
    monkeypatch.setattr(integrity, "DAY", 86_400.0)
    time.sleep(0.05)  # a kernel's clock ticks every few milliseconds
    flip(large)  # and puts back the time of its last change
    assert hashes_of_another_process() == 1
    assert entry.make(fill) is True


def test_a_large_file_is_not_hashed_again_after_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.store import integrity

    monkeypatch.setattr(integrity, "REMEMBERED_BYTES", 1)
    entry = Entry("features", {"a": 1}, tmp_path)
    entry.make(fill)
    monkeypatch.setattr(integrity, "_hashes", {})
    monkeypatch.setattr(integrity, "file_sha256", lambda path: pytest.fail(f"{path} is hashed again"))
    assert entry.make(fill) is False
    assert {path.name for path in entry.folder.iterdir()} == {"train.safetensors", "manifest.json", integrity.INTACT}
    monkeypatch.undo()
    time.sleep(0.05)  # a kernel's clock ticks every few milliseconds
    flip(entry.folder / "train.safetensors")
    assert entry.make(fill) is True


def test_files_are_on_the_disk_before_the_entry_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.store import entries, files

    entry, original = Entry("features", {"a": 1}, tmp_path), entries.sync
    synced: list[tuple[str, bool]] = []

    def sync(path: Path) -> None:
        synced.append((path.name, entry.folder.exists()))
        original(path)

    for module in (entries, files):
        monkeypatch.setattr(module, "sync", sync)
    entry.make(fill)
    assert ("train.safetensors", False) in synced
    assert any("manifest.json" in name and not there for name, there in synced)
    assert synced[-1] == ("features", True), "and its name after it"


def test_a_flipped_bit_in_a_stages_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """safetensors loads it without a word; what comes of it is the same as if it had never been."""
    go(tmp_path, *WORDS, until="transport")
    for kind in ("images", "features", "targets"):
        entry = only(tmp_path / "cache" / kind, "????????????????")
        good = (entry / "train.safetensors").read_bytes()
        flip(entry / "train.safetensors")
        if kind == "features":  # intact targets need no features, damaged or not
            shutil.rmtree(only(tmp_path / "cache" / "targets", "????????????????"))
        go(tmp_path, *WORDS, f"seed={len(kind)}")
        said = capsys.readouterr().err
        assert said.count("is damaged") == 1
        assert f"{entry.name}.corrupt and made again" in said
        assert (entry / "train.safetensors").read_bytes() == good


def test_a_damaged_backbone_is_named_and_never_probed_or_used(tmp_path: Path) -> None:
    from rela_cli import load_backbone

    run = go(tmp_path, *WORDS).folder
    assert run is not None
    backbone = run / "backbone.safetensors"
    good = backbone.read_bytes()
    load_backbone(run)
    flip(backbone)
    damages = [(backbone.read_bytes(), "is damaged: its sha256"), (good[:-7], "truncated or damaged")]
    for content, reason in [*damages, (b"", "is empty"), (POINTER, "is a git-lfs pointer"), (HTML, "is a web page")]:
        backbone.write_bytes(content)
        uses = [
            lambda: load_backbone(run),
            lambda: go(tmp_path, *WORDS, "probe.protocols=[lbfgs]"),
            lambda: go(tmp_path, *FAKE, *SHORT, "prior=rela_run", f"prior.run={run}", until="extract"),
        ]
        for use in uses:
            with pytest.raises(MissingError, match=reason) as caught:
                use()
            assert str(backbone) in str(caught.value)


def test_a_damaged_manifest_of_a_run_is_named(tmp_path: Path) -> None:
    run = go(tmp_path, *WORDS).folder
    assert run is not None
    manifest = run / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(good[: len(good) // 2])
    with pytest.raises(RelaError, match=r"manifest\.json is damaged"):
        go(tmp_path, *WORDS)
    manifest.write_text(good)
    assert go(tmp_path, *WORDS).status == "found"


# ---------------------------------------------------------------------------------------------------------------- locks

SLOW_PRIOR = '''
import os, time
from pathlib import Path
import torch
from rela_cli.priors.base import Prior
class Slow(Prior):
    """Says who extracts, and takes its time."""
    def __init__(self, log):
        super().__init__()
        self.feature_dim, self.log = 3, log
    def fit(self, images):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while Path(self.log + ".hold").exists():
            time.sleep(0.02)
    def forward(self, images):
        return images.float().mean((2, 3))
'''


def test_four_processes_compute_features_once_and_another_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "slowpkg").mkdir()
    (tmp_path / "slowpkg" / "__init__.py").write_text(SLOW_PRIOR)
    (tmp_path / "parts" / "prior").mkdir(parents=True)
    yaml = f"# Slow.\nname: slow\n_target_: slowpkg.Slow\nlog: {log}\n"
    (tmp_path / "parts" / "prior" / "slow.yaml").write_text(yaml)
    hold = tmp_path / "log.hold"
    hold.touch()
    words = ("extract", "--config-dir", "parts", "allow=[slowpkg]", *WORDS[:-3], "prior=slow")
    several = [start(tmp_path, *words) for _ in range(4)]
    wait_until(log.exists)
    victim = next(process for process in several if process.pid == int(log.read_text()))
    others = [process for process in several if process is not victim]
    notes = tmp_path / "outputs" / "cache" / "features"
    note = only(notes, ".*.holder")
    wait_until(lambda: read_json(note))
    facts = read(note)
    assert (facts["pid"], facts["host"]) == (victim.pid, socket.gethostname())
    assert facts["command"].startswith("rela extract") and "prior=slow" in facts["command"]
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    wait_until(lambda: len(log.read_text().split()) == 2)
    hold.unlink()
    answers = [process.communicate(timeout=120) for process in others]
    assert [process.returncode for process in others] == [0, 0, 0], answers
    pids = list(map(int, log.read_text().split()))
    assert len(pids) == 2, "the killed one and the one that took over; the other two computed nothing"
    assert pids[1] in [process.pid for process in others]
    assert any(f"waiting for features/{note.name[1:17]}, which process" in error for _, error in answers)
    assert not list(notes.glob(".*.tmp")) and not list(notes.glob("*.corrupt"))


IN_A_RUN_FOLDER = """
from rela_cli.store.locks import RunLock
from rela_cli.errors import RelaError
while not Path(sys.argv[2]).exists(): time.sleep(0.001)
try:
    with RunLock(Path(sys.argv[1]), "rela train seed=7"):
        print("in", flush=True)
        while not Path(sys.argv[3]).exists(): time.sleep(0.01)
except RelaError as error:
    print(error)
"""


def test_of_two_processes_in_the_same_instant_one_is_refused_and_told_of_the_other(tmp_path: Path) -> None:
    go, end = tmp_path / "go", tmp_path / "end"
    two = [python(IN_A_RUN_FOLDER, tmp_path / "run", go, end) for _ in range(2)]
    go.touch()
    wait_until(lambda: any(process.poll() is not None for process in two))
    end.touch()
    said = {process.pid: process.communicate(timeout=60)[0].strip() for process in two}
    winner = next(pid for pid, text in said.items() if text == "in")
    loser = next(text for pid, text in said.items() if pid != winner)
    assert f"is in use by process {winner} on {socket.gethostname()} (rela train seed=7)" in loser


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    holder = python(IN_A_RUN_FOLDER, tmp_path / "run", tmp_path, tmp_path / "never")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    assert not RunLock(tmp_path / "run").is_free()
    holder.kill()
    holder.communicate()
    assert RunLock(tmp_path / "run").is_free()
    with RunLock(tmp_path / "run"):
        assert read(tmp_path / "run" / ".lock.holder")["pid"] == os.getpid()
    assert not (tmp_path / "run" / ".lock.holder").exists()


# ------------------------------------------------------------------------------------------------------ temporary files


def test_what_killed_processes_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    cache = tmp_path / "outputs" / "cache"
    left, busy = cache / "features" / ".aaaaaaaaaaaaaaaa.tmp", cache / "features" / ".bbbbbbbbbbbbbbbb.tmp"
    old, fresh = cache / "index" / "c" / ".index.json.1.tmp", cache / "index" / "c" / ".index.json.2.tmp"
    for folder in (left, busy, old.parent):
        folder.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"12")
    for file in (old, fresh):
        file.write_text("{")
    os.utime(old, (1e9, 1e9))
    holder = python("from rela_cli.store.locks import Lock\n"
                    "with Lock(Path(sys.argv[1]), 'x').held():\n    print('in', flush=True)\n    time.sleep(600)",
                    cache / "features" / ".bbbbbbbbbbbbbbbb.lock")  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    go(tmp_path / "outputs", *WORDS, until="extract")
    assert (left.exists(), busy.exists(), old.exists(), fresh.exists()) == (False, True, False, True)
    holder.kill()
    holder.communicate()
    sweep_up(cache)
    assert not busy.exists()


def test_a_temporary_file_of_a_run_folder_is_swept_under_its_lock(tmp_path: Path) -> None:
    (tmp_path / ".result.json.1.tmp").write_text("{")
    with RunLock(tmp_path):
        assert not list(tmp_path.glob(".*.tmp"))


# -------------------------------------------------------------------------------------------------- another file system


def elsewhere(tmp_path: Path) -> Path:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    return other / f"rela-test-{os.getpid()}"


def test_outputs_on_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.replace cannot cross one, so nothing may be prepared in the temp folder."""
    far = elsewhere(tmp_path)
    (far / "cache").mkdir(parents=True)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "cache").symlink_to(far / "cache")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    try:
        for place in (far / "all", tmp_path / "outputs"):
            go(place, *WORDS)
            assert read(place / "runs" / "latest" / "manifest.json")["status"] == "finished"
    finally:
        shutil.rmtree(far)


# ---------------------------------------------------------------------------------------------------------- small print


def test_a_lock_waits_and_says_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".x.lock"
    code = "from rela_cli.store.locks import Lock\nwith Lock(Path(sys.argv[1]), 'x', 'rela one').held():\n"
    code += "    print('in', flush=True)\n    time.sleep(1)"
    holder: subprocess.Popen[str] = python(code, path)
    assert holder.stdout is not None
    holder.stdout.readline()
    with Lock(path, "features/x").held():
        assert holder.wait(timeout=60) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"rela: waiting for features/x, which process {holder.pid} on ") and "(rela one)" in said


def test_errors_in_a_fill_pass_through(tmp_path: Path) -> None:
    def wrong(folder: Path) -> Facts:
        raise RelaError("of its own")

    with pytest.raises(RelaError, match="of its own"):
        Entry("features", {}, tmp_path).make(wrong)
    write_json(tmp_path / "x.json", {"a": [1, (2, 3)]})
    assert read_json(tmp_path / "x.json") == {"a": [1, [2, 3]]}
