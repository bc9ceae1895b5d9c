"""A disk that is full, read-only, or not there: said before work where it can be known, and survived where not."""

from __future__ import annotations

import re
import resource
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rela_cli.data.folders import ImageFolder
from rela_cli.errors import DiskError, MissingError
from rela_cli.pipeline import preflight
from rela_cli.pipeline.run import Run
from rela_cli.store.disk import free_bytes
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts, read_json, write_atomic, write_json
from rela_cli.store.integrity import damage
from rela_cli.training.checkpoint import Checkpoints
from rela_cli.training.trainer import Trainer
from tests.conftest import NO_TORCH, Rela
from tests.factories import config
from tests.promises.helpers import FAKE, RANDOM, SHORT, WORDS, go, only, read, remount, small_disk, start

ROOM = re.compile(r"no room for (\S+): about ([\d.]+ [kMG]B) needed, ([\d.]+ [kMG]B) free")


def half_written(outputs: Path) -> list[Path]:
    """Temporary files, and entries that are not whole."""
    left = list(outputs.rglob(".*.tmp"))
    entries = [path for path in outputs.glob("cache/*/*") if path.is_dir() and not path.name.startswith(".")]
    return left + [path for path in entries if damage(path, contents=True)]


# ------------------------------------------------------------------------------------------------------ before any work


def test_a_disk_too_small_is_said_before_torch_is_loaded(rela: Rela, tmp_path: Path) -> None:
    with small_disk(tmp_path / "outputs", "100k") as outputs:
        done = rela("train", "dataset=digits", stub=NO_TORCH)  # 1797 x 8 x 8 x 3 bytes and labels
        assert done.returncode == 1
        found = ROOM.search(done.stderr)
        assert found, done.stderr
        assert (found[1], found[2]) == ("outputs/cache", "360 kB")
        assert float(found[3].split()[0]) <= 103
        assert "rela clean --dry-run" in done.stderr and "paths.outputs=FOLDER" in done.stderr
        assert list(outputs.iterdir()) == []


def test_a_file_system_without_inodes_says_that_these_are_out(tmp_path: Path) -> None:
    with small_disk(tmp_path / "full", "1m", "nr_inodes=3") as full:
        for number in range(2):
            (full / str(number)).touch()
        with pytest.raises(DiskError, match=r"can hold no more files \(no inode is left\).* 1.0 MB free"):
            write_json(full / "facts.json", {})
        (full / "0").unlink()
        write_json(full / "facts.json", {})


def test_a_read_only_disk_is_said_before_torch_is_loaded(rela: Rela, tmp_path: Path) -> None:
    with small_disk(tmp_path / "outputs", "4m") as outputs:
        remount(outputs, "ro")
        for words in (WORDS, (*WORDS, "paths.outputs=elsewhere", "paths.run=outputs/mine")):
            done = rela("train", *words, stub=NO_TORCH)
            assert done.returncode == 1
            assert "Read-only file system" in done.stderr and "paths.outputs=FOLDER" in done.stderr
            assert "Traceback" not in done.stderr
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_a_file_in_place_of_the_folder_is_said_before_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DiskError, match="file is a file, and a folder is needed"):
        go(tmp_path / place, *WORDS)
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_that_are_not_there_are_made(tmp_path: Path) -> None:
    go(tmp_path / "a" / "b" / "c", *WORDS, until="extract")
    assert list((tmp_path / "a" / "b" / "c" / "cache" / "features").glob("*/train.safetensors"))


def test_data_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"dataset\.root=.*nowhere is not a folder"):
        ImageFolder(root=str(tmp_path / "nowhere"), image_size=8, limit=None, test_limit=None, seed=0, flip=True)


def test_what_is_needed_is_estimated(tmp_path: Path) -> None:
    """Against what is then written: never more, and nearly all of it."""
    run = Run(config(*WORDS, f"paths.outputs={tmp_path}"))
    assert preflight.needs(run, "probe") == {"images": 128 * (3 * 8 * 8 + 8)}, "random features have any width"
    go(tmp_path, *WORDS, until="extract")
    written = sum(path.stat().st_size for path in run.images.folder.glob("*.safetensors"))
    assert preflight.image_bytes(run) <= written <= 1.05 * preflight.image_bytes(run)  # type: ignore[operator]
    assert preflight.needs(run, "probe") == {}
    known = Run(config(*FAKE, *SHORT, "prior=embedded", f"paths.outputs={tmp_path}"))
    assert preflight.needs(known, "probe") == {}, "a run of ours says its width to whoever builds it"


CHECKPOINTS = re.compile(r"no room for (\S+): about [\d.]+ [kMG]B needed, .* free \(estimated before training: (\d) x ")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_room_for_checkpoints_is_what_they_take(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method with a target network, in phase 1: never more than is written, and nearly all of it."""
    asked, written = [], []
    monkeypatch.setattr(Checkpoints, "ensure_room", lambda _, size: asked.append(size))
    save = Checkpoints.save

    def measured(*arguments: Any) -> Path:
        written.append((path := save(*arguments)).stat().st_size)
        return path

    monkeypatch.setattr(Checkpoints, "save", measured)
    backbone = go(tmp_path, *WORDS, "method=byol", f"optimizer={optimizer}", "learner.width=8").folder
    assert backbone is not None
    for_sure, before_training = asked
    assert for_sure <= (backbone / "backbone.safetensors").stat().st_size <= 1.1 * for_sure
    assert before_training <= min(written) and max(written) <= 1.1 * before_training, (asked, written)


def test_no_room_for_checkpoints_is_said_before_anything_is_extracted(tmp_path: Path) -> None:
    """The pixels fit; three times the learner's weights (2.8 MB) do not."""
    with small_disk(tmp_path / "outputs", "6m") as outputs:
        process = start(tmp_path, "train", *WORDS, "learner.width=16")
        _, error = process.communicate(timeout=300)
        assert process.returncode == 1
        found = CHECKPOINTS.search(error)
        assert found and found[1].startswith("outputs/runs/fake-random-") and found[2] == "3", error
        assert "Traceback" not in error and not (outputs / "cache" / "features").exists()


def test_no_room_for_checkpoints_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights alone would fit, with the optimizer's memory they do not; with room made the same command trains."""
    with small_disk(tmp_path / "outputs", "12m") as outputs:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "start_step", lambda _: pytest.fail("a step was taken"))
            with pytest.raises(DiskError, match=CHECKPOINTS):
                go(outputs, *WORDS, "learner.width=16")
        folder = only(outputs / "runs", "fake-*")
        assert read(folder / "manifest.json")["status"] == "failed"
        assert not list(folder.glob("checkpoint-*")) and (outputs / "cache" / "targets").exists()
        remount(outputs, "size=64m")
        assert go(outputs, *WORDS, "learner.width=16").status == "run"


def test_checkpoints_that_are_there_need_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rela_cli.store.disk.free_bytes", lambda _: 2_500)
    for number, fits in enumerate((False, True, True, True)):
        checkpoints = Checkpoints(tmp_path, 0)
        with nullcontext() if fits else pytest.raises(DiskError, match="3 kB needed, 3 kB free"):
            checkpoints.ensure_room(1_000)
        (tmp_path / f"checkpoint-{number:010}-0.safetensors").touch()


# ----------------------------------------------------------------------------------------------------------- in mid-run


def test_a_disk_that_fills_in_mid_run_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels (26 kB) fit, the features' room is looked at once their width is known, a checkpoint fails."""
    fit = Trainer.fit

    def while_others_write(*arguments: Any) -> None:
        (tmp_path / "outputs" / "theirs").write_bytes(b"x" * (free_bytes(tmp_path / "outputs") - 100_000))
        fit(*arguments)

    with small_disk(tmp_path / "outputs", "120k") as outputs:
        wide = (*FAKE, *SHORT, "prior=random", "prior.width=64")
        with pytest.raises(DiskError, match=r"features/\S+: about 131\.1 kB|about 132 kB needed"):
            go(outputs, *wide, until="extract")
        assert half_written(outputs) == []
        kept = only(outputs / "cache" / "images", "????????????????")
        stamp = (kept / "train.safetensors").stat()
        remount(outputs, "size=40m")
        monkeypatch.setattr(Trainer, "fit", while_others_write)
        with pytest.raises(DiskError, match=r"no room for \S+checkpoint-\S+\.safetensors.*free") as caught:
            go(outputs, *WORDS, "learner.width=16")
        monkeypatch.undo()
        assert "the same command goes on" in str(caught.value)
        assert half_written(outputs) == []
        (outputs / "theirs").unlink()
        outcome = go(outputs, *WORDS, "learner.width=16")
        assert outcome.status == "run" and outcome.folder is not None
        assert read(outcome.folder / "manifest.json")["status"] == "finished"
        after = (kept / "train.safetensors").stat()
        assert (after.st_ino, after.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns), "and nothing was made twice"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_under_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoints, "rewind", lambda *_: None)  # it would put a new file into the link's place
    monkeypatch.setattr("rela_cli.training.checkpoint.synced", lambda _: 0)  # a device cannot be synced
    run = Run(config(*WORDS, f"paths.outputs={tmp_path}"))
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"no room for \S+: more is needed, .* free \(.*No space left"):
        go(tmp_path, *WORDS)
    assert read(run.folder / "manifest.json")["status"] == "failed"
    (run.folder / "metrics.jsonl").unlink()
    assert go(tmp_path, *WORDS).status == "run"


def lower_the_limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_limit_on_file_sizes_without_any_mount(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: what a quota or an old file system does."""
    process = start(tmp_path, "train", *FAKE, *SHORT, *RANDOM, "learner.width=16", before=lower_the_limit)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1, error
    assert re.search(r"rela: no room for \S+checkpoint-\S+\.safetensors: ", error), error
    assert "Traceback" not in error
    outputs = tmp_path / "outputs"
    manifest = read(only(outputs / "runs", "fake-*") / "manifest.json")
    assert (manifest["status"], "no room for" in manifest["reason"]) == ("failed", True)
    assert half_written(outputs) == []
    assert go(outputs, *FAKE, *SHORT, *RANDOM, "learner.width=16").status == "run"


# ----------------------------------------------------------------------------------------------------------- the writer


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        path = disk / "state.json"
        write_json(path, {"step": 1})
        with pytest.raises(DiskError, match=r"no room for \S+state\.json: more is needed, \d+ kB free"):
            write_atomic(path, lambda temporary: temporary.write_bytes(b"x" * 100_000))
        assert read_json(path) == {"step": 1}
        assert [p.name for p in disk.iterdir()] == ["state.json"]


@pytest.mark.parametrize("library", ["safetensors.torch", "safetensors.numpy", "torch"])
def test_every_librarys_full_disk_is_told_as_one(tmp_path: Path, library: str) -> None:
    def fill(folder: Path) -> Facts:
        import numpy as np
        import torch
        from safetensors.numpy import save_file as save_numpy
        from safetensors.torch import save_file

        if library == "torch":
            torch.save(torch.zeros(100_000), folder / "x.pt")
        elif library == "safetensors.torch":
            save_file({"x": torch.zeros(100_000)}, folder / "x.safetensors")
        else:
            save_numpy({"x": np.zeros(100_000)}, folder / "x.safetensors")
        return {}

    with small_disk(tmp_path / "disk", "64k") as disk:
        entry = Entry("features", {}, disk)
        with pytest.raises(DiskError, match=r"no room for \S+: about 400 kB needed, \d+ kB free"):
            entry.make(fill, needed=400_000)
        assert half_written(disk) == []
        assert entry.manifest is None


@pytest.mark.parametrize(("command", "way_out"), [("plot", "--to=FOLDER"), ("report --no-neighbours", "--to=FILE")])
def test_plots_and_reports_have_no_room_or_no_leave(rela: Rela, tmp_path: Path, command: str, way_out: str) -> None:
    go(tmp_path / "outputs", *WORDS)
    with small_disk(tmp_path / "disk", "4k") as disk:
        full = rela(*command.split(), "--out=disk/out")
        assert [path for path in disk.rglob("*") if path.is_file() and path.suffix == ".html"] == []
        remount(disk, "ro")
        locked = rela(*command.split(), "--out=disk/new/out")
    (tmp_path / "file").touch()
    taken = rela(*command.split(), "--out=file/out")
    for done, said in (
        (full, "no room for disk/out"),
        (locked, "Read-only file system"),
        (taken, "cannot be written to"),
    ):
        assert done.returncode == DiskError.exit_code, done.stderr
        assert said in done.stderr and way_out in done.stderr and "Traceback" not in done.stderr
        assert "unexpected" not in done.stderr


def test_a_failing_image_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def fill(folder: Path) -> Facts:
        raise PermissionError(13, "Permission denied", "/elsewhere/photo.jpg")

    with pytest.raises(PermissionError):
        Entry("images", {}, tmp_path).make(fill)
