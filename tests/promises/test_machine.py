"""What a machine refuses: locks, syncs, links between disks, memory, threads, and the folder that one stands in."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest
import torch

from rela_cli import cli
from rela_cli.commands import clean, doctor
from rela_cli.errors import DiskError, RelaError
from rela_cli.evaluation.protocols import nine_tenths
from rela_cli.store import locks
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import write_json
from rela_cli.store.locks import RunLock
from rela_cli.store.notices import warn_once

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def refuse(number: int) -> object:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_lock_is_said(tmp_path: Path, monkeypatch: Patch, number: int) -> None:
    """By the run, by doctor, and by clean, which could not tell what is in use."""
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with pytest.raises(DiskError, match=rf"run cannot be locked \({os.strerror(number)}\); choose another disk"):
        RunLock(tmp_path / "run").__enter__()
    assert doctor.locks(Path("outputs")).status == "fail"
    with pytest.raises(DiskError, match="nothing is removed"):
        clean.main(["outputs"])


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_lock_files_in_place_of_locks_have_a_way_out(tmp_path: Path, monkeypatch: Patch) -> None:
    """One that a process on another host has left behind holds for ever, so the message says what to remove."""
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    check = doctor.locks(Path("outputs"))
    assert (check.status, "keeps no locks" in check.text) == ("warn", True)
    lock = tmp_path / "run" / ".lock"
    with RunLock(tmp_path / "run"):
        content = lock.read_text().replace(socket.gethostname(), "elsewhere")
    lock.write_text(content)
    monkeypatch.setattr(locks, "NOTE_SECONDS", 0)
    with pytest.raises(RelaError, match=rf"is in use by .*\n.*if the process is gone, remove {lock}"):
        RunLock(tmp_path / "run").__enter__()
    lock.unlink()
    with RunLock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_sync_is_named(tmp_path: Path, monkeypatch: Patch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.raises(DiskError, match=rf"a\.json cannot be read or written: {os.strerror(number)}"):
        write_json(tmp_path / "a.json", {})


@pytest.mark.parametrize("number", [errno.EIO, errno.EXDEV, errno.ESTALE])
def test_a_broken_disk_is_named(tmp_path: Path, monkeypatch: Patch, number: int) -> None:
    monkeypatch.setattr(os, "replace", refuse(number))
    with pytest.raises(DiskError) as refused:
        write_json(tmp_path / "a.json", {})
    said = str(refused.value)
    assert str(tmp_path / "a.json") in said and os.strerror(number) in said and "paths.outputs=FOLDER" in said


def test_a_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"gone/.*x\.json.* is gone: it was removed"):
        write_json(tmp_path / "gone" / "x.json", {})
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "outputs" / "runs" / "a"):
        (tmp_path / "photos" / "x.png").read_bytes()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory: no more memory\n  ways out: a smaller batch_size="),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPUAllocator"),
        (RuntimeError("can't start new thread"), "no more threads or processes can be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads or processes"),
    ],
)
def test_a_machine_at_its_limits(error: Exception, words: str, monkeypatch: Patch, capsys: Capture) -> None:
    def dispatch(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "dispatch", dispatch)
    assert cli.main(["train"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"rela: {words}") and "ways out" in said and "unexpected error" not in said


@pytest.mark.parametrize("command", [["train"], ["ls"], ["table"]])
def test_a_working_directory_that_was_removed(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture, command: list[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(command) == 1
    assert capsys.readouterr().err == "rela: the folder that you are in has been removed: cd to one that is there\n"


def test_one_image_a_class(capsys: Capture) -> None:
    """None can be held out; with a second one of some class one can be."""
    warn_once.cache_clear()
    fit, judge = nine_tenths(torch.tensor([0, 1, 2]))
    assert fit.tolist() == judge.tolist() == [0, 1, 2] and "none can be held out" in capsys.readouterr().err
    fit, judge = nine_tenths(torch.tensor([0, 1, 1]))
    assert sorted([*fit.tolist(), *judge.tolist()]) == [0, 1, 2] and len(fit) and len(judge)
