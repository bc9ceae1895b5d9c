"""Made once, never half written, whoever is killed: with real processes and real signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rela_cli.errors import DiskError, MissingError, RelaError
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts, file_sha256, fingerprint, read_json, write_atomic, write_json
from rela_cli.store.locks import RunLock
from tests.conftest import ROOT


def entry(root: Path, **spec: object) -> Entry:
    return Entry("features", spec or {"a": 1}, root)


def fill(folder: Path) -> Facts:
    (folder / "data.bin").write_bytes(b"12345")
    return {"seconds": 1.5}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".lock", ".holder")))


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", "import sys, time, os\nfrom pathlib import Path\n" + code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


# --------------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_stays_for_good() -> None:
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2d", "runs of last year have to be found"
    assert fingerprint({"a": (1, 2)}) == fingerprint({"a": [1, 2]})


def test_file_hash(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


# -------------------------------------------------------------------------------------------------------------- entries


def test_made_once(tmp_path: Path) -> None:
    made = entry(tmp_path)
    assert made.manifest is None
    assert made.make(fill) is True
    assert made.make(lambda folder: pytest.fail("made again")) is False
    manifest = made.manifest
    assert manifest is not None
    assert (manifest["kind"], manifest["spec"], manifest["seconds"]) == ("features", {"a": 1}, 1.5)
    assert manifest["files"]["data.bin"] == {"bytes": 5, "sha256": file_sha256(made.folder / "data.bin")}
    assert {"created", "host", "pid"} <= manifest.keys()
    assert names(made.folder.parent) == [made.hash]
    assert entry(tmp_path, a=2).make(fill) is True


def test_a_link_to_a_folder_that_is_away_is_not_replaced(tmp_path: Path) -> None:
    """A disk that is not mounted: nothing is made in its place, and once it is back the entry is found."""
    made, away = entry(tmp_path / "cache"), tmp_path / "disk"
    made.make(fill)
    made.folder.rename(away)
    made.folder.symlink_to(away)
    assert made.make(lambda folder: pytest.fail("made again")) is False
    away.rename(tmp_path / "unmounted")
    with pytest.raises(MissingError, match=r"is a link to .*disk, which is not there.*remove the link"):
        made.make(lambda folder: pytest.fail("made again"))
    (tmp_path / "unmounted").rename(away)
    assert made.make(lambda folder: pytest.fail("made again")) is False


def test_a_failing_fill_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> Facts:
        fill(folder)
        raise ZeroDivisionError

    made = entry(tmp_path)
    with pytest.raises(ZeroDivisionError):
        made.make(broken)
    assert names(made.folder.parent) == []
    assert made.manifest is None
    assert made.make(fill) is True


def test_an_entry_without_a_readable_manifest_is_made_again(tmp_path: Path) -> None:
    made = entry(tmp_path)
    made.make(fill)
    (made.folder / "manifest.json").write_text('{"kind": "fea')
    (made.folder / "stranger").write_text("x")
    assert made.make(fill) is True
    assert names(made.folder) == ["data.bin", "manifest.json"]


KILLED = """
from rela_cli.store.entries import Entry
def fill(folder):
    (folder / "half.bin").write_bytes(b"12")
    Path(sys.argv[2]).touch()
    time.sleep(600)
Entry("features", {"a": 1}, Path(sys.argv[1])).make(fill)
"""


def test_kill_9_inside_fill_leaves_nothing_that_is_ever_read(tmp_path: Path) -> None:
    made, mark = entry(tmp_path / "cache"), tmp_path / "mark"
    victim = process(KILLED, tmp_path / "cache", mark)
    wait_for(mark)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert made.manifest is None
    assert len(names(made.folder.parent)) == 1, "the killed process' half folder"
    assert made.make(fill) is True
    assert names(made.folder.parent) == [made.hash], "swept"
    assert names(made.folder) == ["data.bin", "manifest.json"]


COUNTED = """
from rela_cli.store.entries import Entry
def fill(folder):
    with open(sys.argv[2], "a") as log: log.write("x")
    time.sleep(0.5)
    (folder / "data.bin").write_bytes(b"1")
    return {}
while not Path(sys.argv[3]).exists(): time.sleep(0.005)
made = Entry("features", {"a": 1}, Path(sys.argv[1]))
print(made.make(fill), (made.folder / "data.bin").exists())
"""


def test_processes_that_want_the_same_compute_it_once(tmp_path: Path) -> None:
    several = [process(COUNTED, tmp_path / "cache", tmp_path / "log", tmp_path / "go") for _ in range(3)]
    time.sleep(0.3)
    (tmp_path / "go").touch()
    answers = sorted(one.communicate(timeout=60)[0].strip() for one in several)
    assert answers == ["False True", "False True", "True True"]
    assert (tmp_path / "log").read_text() == "x"


def test_another_takes_over_when_the_maker_is_killed(tmp_path: Path) -> None:
    victim = process(KILLED, tmp_path / "cache", tmp_path / "mark")
    wait_for(tmp_path / "mark")
    (tmp_path / "go").touch()
    waiting = process(COUNTED, tmp_path / "cache", tmp_path / "log", tmp_path / "go")
    time.sleep(0.3)
    assert waiting.poll() is None
    victim.send_signal(signal.SIGKILL)
    assert waiting.communicate(timeout=60)[0].strip() == "True True"
    victim.communicate()


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_failing_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def broken(temporary: Path) -> None:
        temporary.write_text('{"a": ')
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        write_atomic(path, broken)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


def test_a_file_system_that_cannot_sync_folders_or_set_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network file systems are: a file that cannot be synced is an error all the same."""
    fsync, answers = os.fsync, {stat.S_IFDIR: errno.EINVAL}

    def refusing(descriptor: int) -> None:
        if number := answers.get(stat.S_IFMT(os.fstat(descriptor).st_mode)):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def no_permissions(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", refusing)
    monkeypatch.setattr(Path, "chmod", no_permissions)
    write_json(tmp_path / "a.json", {"step": 1})
    assert entry(tmp_path / "cache").make(fill)
    for kind, number in ((stat.S_IFDIR, errno.EIO), (stat.S_IFREG, errno.EINVAL)):
        answers.clear()
        answers[kind] = number
        with pytest.raises(
            DiskError, match=rf"b\.json cannot be read or written: {os.strerror(number)}\n.*paths.outputs"
        ):
            write_json(tmp_path / "b.json", {"step": 2})
    assert read_json(tmp_path / "a.json") == {"step": 1}


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"n": 0})
    seen = []

    def slow(temporary: Path) -> None:
        assert temporary.parent == path.parent, "os.replace is atomic inside one file system only"
        temporary.write_text('{"n"')
        seen.append(read_json(path))
        temporary.write_text('{"n": 1}')

    with path.open() as reader:  # who has it open goes on with the old one, whole
        write_atomic(path, slow)
        assert json.load(reader)["n"] == 0
    assert seen == [{"n": 0}]
    assert read_json(path) == {"n": 1}


def test_kill_9_inside_a_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"n": 0})
    code = """
from rela_cli.store.files import write_atomic
def write(temporary):
    temporary.write_text('{"n"')
    os.kill(os.getpid(), 9)
write_atomic(Path(sys.argv[1]), write)
"""
    victim = process(code, path)
    victim.communicate()
    assert victim.returncode == -9
    assert read_json(path) == {"n": 0}


@pytest.mark.parametrize("text", ["", "[1]", '{"a"', "null", "\x00"])
def test_a_broken_json_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.json").write_text(text)
    assert read_json(tmp_path / "f.json") is None
    assert read_json(tmp_path / "missing.json") is None


# ---------------------------------------------------------------------------------------------------------------- locks

HOLDING = """
from rela_cli.store.locks import RunLock
with RunLock(Path(sys.argv[1]), "rela train seed=1"):
    Path(sys.argv[2]).touch()
    time.sleep(600)
"""


def test_the_second_process_in_a_run_folder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    holder = process(HOLDING, tmp_path / "run", tmp_path / "mark")
    wait_for(tmp_path / "mark")
    with pytest.raises(RelaError) as caught, RunLock(tmp_path / "run"):
        pass
    assert f"in use by process {holder.pid} on {socket.gethostname()} (rela train seed=1)" in str(caught.value)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunLock(tmp_path / "run"):
        pass


def test_a_lock_is_free_again_after_use_and_after_an_error(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        pass
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path / "run"):
        1 / 0
    with RunLock(tmp_path / "run"):
        pass
