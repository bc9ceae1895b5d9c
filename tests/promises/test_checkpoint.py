"""Row 6 for checkpoints: what is broken is found by its content, set aside and said, and the one before it is taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rela_cli.errors import RelaError
from rela_cli.store.locks import RunLock
from rela_cli.training import checkpoint
from rela_cli.training.checkpoint import Checkpoints, pack, unpack

STATE: dict[str, Any] = {
    "model": {"a.weight": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "b": torch.tensor(3)},
    "optimizer": {0: {"step": torch.tensor(2.0), "m": torch.randn(3)}, 7: {}},
    "counters": [1, None, True, 0.1 + 0.2, "two", float("inf")],
    "random": torch.get_rng_state(),
    "nothing": torch.empty(0),
}


def saved(folder: Path, *steps: int) -> Checkpoints:
    found = Checkpoints(folder, 0)
    for step in steps:
        found.save(step, 1, {**STATE, "step": step})
    return found


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    found = saved(tmp_path, 12).latest()
    assert found is not None
    assert (found.step, found.state["counters"]) == (12, STATE["counters"])
    assert found.state["optimizer"].keys() == {"0", "7"}
    for path in (("model", "a.weight"), ("model", "b"), ("random",), ("nothing",)):
        ours, theirs = STATE, found.state
        for key in path:
            ours, theirs = ours[key], theirs[key]
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)  # type: ignore[attr-defined, arg-type]


def test_tensors_that_share_memory_can_be_written(tmp_path: Path) -> None:
    tied = torch.randn(4)
    Checkpoints(tmp_path, 0).save(1, 1, {"one": tied, "two": tied, "part": tied[1:]})
    found = Checkpoints(tmp_path, 0).latest()
    assert found is not None
    assert torch.equal(found.state["two"], tied) and torch.equal(found.state["part"], tied[1:])


def test_pack_takes_tensors_only_out() -> None:
    tensors: dict[str, torch.Tensor] = {}
    packed = pack({"a": [1, {"b": torch.ones(2)}], "c": (2, "x")}, "", tensors)
    assert list(tensors) == ["/a/1/b"]
    assert unpack(json.loads(json.dumps(packed)), tensors) == {"a": [1, {"b": tensors["/a/1/b"]}], "c": [2, "x"]}


def test_two_are_kept(tmp_path: Path) -> None:
    found = saved(tmp_path, 3, 9, 10, 100)
    assert [int(path.name.split("-")[1]) for path in found.found()] == [100, 10]


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 0).latest() is None


BREAKAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "a flipped bit in a tensor": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "a flipped bit in the header": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "a flipped bit in the length": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a page": lambda content: b"<!DOCTYPE html><html></html>",
    "a pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_a_broken_one_gives_way_to_the_one_before(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = saved(tmp_path, 5, 6)
    newest = found.found()[0]
    newest.write_bytes(BREAKAGES[what](newest.read_bytes()))
    latest = found.latest()
    assert latest is not None and latest.state["step"] == 5
    assert torch.equal(latest.state["model"]["a.weight"], STATE["model"]["a.weight"])
    assert f"{newest} is broken" in capsys.readouterr().err
    assert not newest.exists() and Path(f"{newest}.corrupt").exists()
    found.clear()
    assert list(tmp_path.iterdir()) == []


def test_with_all_broken_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = saved(tmp_path, 5, 6)
    for path in found.found():
        path.write_bytes(b"")
    assert found.latest() is None
    assert capsys.readouterr().err.count("is broken") == 2


def test_another_format_is_not_taken_for_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "CHECKPOINT_FORMAT", 99)
        saved(tmp_path, 5)
    with pytest.raises(RelaError, match=r"has format 99 and this version of rela reads 1\..* resume=never"):
        Checkpoints(tmp_path, 0).latest()
    assert len(Checkpoints(tmp_path, 0).found()) == 1


@pytest.mark.parametrize(
    "facts",
    [None, "", "[1]", "{}", '{"format": 1}', '{"format": 1, "step": 1, "lengths": {}, "state": {"__tensor__": 1}}'],
)
def test_a_file_by_another_hand_is_broken(tmp_path: Path, facts: str | None) -> None:
    """Its name is right, its content is not ours."""
    save_file({"x": torch.ones(1)}, tmp_path / "x", None if facts is None else {"facts": facts})
    digest = hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()[:16]
    (tmp_path / "x").rename(tmp_path / f"checkpoint-0000000001-{digest}.safetensors")
    assert Checkpoints(tmp_path, 0).latest() is None


def test_orphans_are_swept_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-0000000005-00.safetensors.123.tmp").write_bytes(b"half")
    with RunLock(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".lock.holder"}


@pytest.mark.parametrize(("length", "text"), [(4, "one\n"), (0, ""), (None, None), (99, "one\ntwo\n")])
def test_rewind(tmp_path: Path, length: int | None, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("one\ntwo\n")
    checkpoint.rewind(log, length)
    assert (log.read_text() if log.exists() else None) == text
    assert ("has lost 91 of its first 99 bytes" in capsys.readouterr().err) == (length == 99)


def test_when_one_is_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    found = Checkpoints(tmp_path, 300)
    found.restart(7, 1)
    assert not found.is_due(7, 2, True), "what was just loaded need not be saved"
    assert not found.is_due(8, 1, False)
    assert found.is_due(8, 2, False), "phase 1 is over"
    assert found.is_due(8, 1, True)
    now[0] += 300
    assert found.is_due(8, 1, False)
    found.save(8, 1, {})
    assert not found.is_due(9, 1, False)
