"""Folders as the world has them: broken files are named, or left out and counted; what decodes, decodes right.

The known pixel values of every mode, depth, orientation and frame are in tests/data/test_folders.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli.config.compose import compose
from rela_cli.data.decoding.images import decode
from rela_cli.data.folders import ImageFolder
from rela_cli.data.parquet import Parquet
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline.run import Run
from rela_cli.store.files import read_json
from tests.conftest import Rela
from tests.promises.helpers import go

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True, "image_size": 8}
TRAIN = ("learner.width=4", "epochs=1", "batch_size=8", "prior=random", "prior.width=4", "probe.protocols=[knn]")
TRAIN = (*TRAIN, "probe.knn_k=3", "probe.baselines=false", "runtime.eval_every_epochs=0")


def paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve good images a class in train, four in test; then every kind of broken file."""
    top = tmp_path / "photos"
    for i in range(32):
        paint(top / ("train" if i < 24 else "test") / "ab"[i % 2] / f"{i:02}.png", i)
    good = (top / "train" / "a" / "00.png").read_bytes()
    (top / "train" / "a" / "truncated.png").write_bytes(good[: len(good) // 2])
    (top / "train" / "a" / "empty.jpg").write_bytes(b"")
    (top / "train" / "b" / "page.jpg").write_bytes(b"<html>404</html>")
    (top / "train" / "b" / "pointer ü.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (top / "test" / "b" / "bomb.png").write_bytes(bomb())
    return top


BROKEN = {
    "train": {"a/empty.jpg", "a/truncated.png", "b/page.jpg", "b/pointer ü.png"},
    "test": {"b/bomb.png"},
}


def bomb() -> bytes:
    """A PNG that says it is 100,000 pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(root=str(root), **{**COMMON, "on_error": "skip", "max_errors": 10, **options})


def names(dataset: ImageFolder | Parquet) -> dict[str, set[str]]:
    return {split: set(broken) for split, broken in dataset.skipped.items()}


# ------------------------------------------------------------------------------------------------------- raise, or skip


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_broken_file_is_named(root: Path, tmp_path: Path, on_disk: bool) -> None:
    words = ("dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", f"dataset.on_disk={on_disk}")
    with pytest.raises(MissingError, match=r"photos/t\w+/\w/\S+.* cannot be read as an image"):
        go(tmp_path / "out", *words, *TRAIN)


@pytest.mark.parametrize("on_disk", [False, True])
def test_skipped_files_are_left_out_and_listed_with_their_count(root: Path, tmp_path: Path, on_disk: bool) -> None:
    words = ("dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", f"dataset.on_disk={on_disk}")
    outcome = go(tmp_path / "out", *words, "dataset.on_error=skip", *TRAIN)
    assert outcome.folder is not None
    result = json.loads((outcome.folder / "result.json").read_text())
    assert (result["train_samples"], result["test_samples"]) == (24, 8)
    assert result["skipped"]["count"] == 5
    assert {split: set(files) for split, files in result["skipped"]["files"].items()} == BROKEN
    assert "exceeds limit" in result["skipped"]["files"]["test"]["b/bomb.png"]
    for split, broken in BROKEN.items():
        for name in broken:
            (root / split / name).unlink()
    clean = go(tmp_path / "clean", *words, *TRAIN)
    assert clean.folder is not None
    weights = [(f / "backbone.safetensors").read_bytes() for f in (outcome.folder, clean.folder)]
    assert weights[0] == weights[1], "as if the broken ones had never been there"


def test_samples_and_labels_are_those_that_are_left(root: Path) -> None:
    dataset = folder(root)
    images, labels = dataset.load("train")
    assert (len(images), np.bincount(labels).tolist()) == (24, [12, 12])
    assert np.array_equal(images[0], decode(root / "train" / "a" / "00.png", 8))
    assert np.array_equal(dataset.image("train", 12), decode(root / "train" / "b" / "01.png", 8))
    assert folder(root, limit=10).count("train") == 10


def test_the_limit(root: Path) -> None:
    assert folder(root, max_errors=5).count("train") == 24
    with pytest.raises(
        MissingError, match=r"5 images cannot be decoded, more than dataset\.max_errors=4 allows: train/a/"
    ):
        folder(root, max_errors=4).count("train")


def test_a_class_of_which_nothing_is_left_is_named(root: Path) -> None:
    for path in (root / "train" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(MissingError, match=r"no image in \S+train/b can be decoded"):
        folder(root, max_errors=100).count("train")


def test_what_is_left_out_is_part_of_the_fingerprint_and_the_word_itself_is_not(root: Path) -> None:
    """What changes which samples exist; the limit does not, and with nothing broken `skip` does not either."""
    skipping = folder(root).identity
    assert skipping["skipped"] == {split: sorted(names) for split, names in BROKEN.items()}
    assert folder(root, max_errors=7).identity == skipping
    assert folder(root, on_error="raise").identity != skipping
    for split, broken in BROKEN.items():
        for name in broken:
            (root / split / name).unlink()
    assert folder(root).identity == folder(root, on_error="raise").identity

    def hash_of(*words: str) -> str:
        given = ("dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", "batch_size=8", "prior=random")
        return Run(compose([*given, *words])).hash

    assert hash_of() == hash_of("dataset.on_error=skip") == hash_of("dataset.on_error=skip", "dataset.max_errors=0")


def test_the_scan_is_remembered_until_a_file_changes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rela_cli.data.decoding import undecodable

    looked: list[object] = []
    original = undecodable.why_undecodable
    monkeypatch.setattr(undecodable, "why_undecodable", lambda source: looked.append(source) or original(source))
    first = folder(root, cache=tmp_path)
    assert names(first) == BROKEN
    assert len(looked) == 37
    assert "5 images cannot be decoded and are left out: train/a/empty.jpg" in capsys.readouterr().err
    assert names(folder(root, cache=tmp_path)) == BROKEN
    assert len(looked) == 37
    assert "are left out" in capsys.readouterr().err, "each run says so"
    paint(root / "train" / "a" / "truncated.png", 7)
    assert names(folder(root, cache=tmp_path))["train"] == BROKEN["train"] - {"a/truncated.png"}
    path = next(iter((tmp_path / "index").glob("*/broken.json")))
    path.write_text('{"broken": [1]}')
    assert read_json(path) is not None
    for one in (tmp_path / "index").glob("*/broken.json"):
        one.write_text('{"broken": [1]}')
    assert "a/empty.jpg" in names(folder(root, cache=tmp_path))["train"], "a broken note is no note"


def test_parquet_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    good = [paint(tmp_path / "x" / f"{i}.png", i).read_bytes() for i in range(6)]
    cells = [*good[:2], b"<html>", None, *good[2:], good[0][:60]]
    table = arrow.table({"image": arrow.array(cells, arrow.binary()), "label": list(range(9))})
    (tmp_path / "data").mkdir()
    parquet.write_table(table, tmp_path / "data" / "train-0.parquet")
    options = {**COMMON, "root": str(tmp_path / "data"), "hub": None, "image_column": "image", "label_column": "label"}
    dataset = Parquet(**options, on_error="skip", max_errors=3)
    images, labels = dataset.load("train")
    assert (dataset.count("train"), labels.tolist()) == (6, [0, 1, 4, 5, 6, 7])
    assert np.array_equal(images[2], decode(tmp_path / "x" / "2.png", 8))
    assert names(dataset)["train"] == {"2", "3", "8"}
    assert dataset.identity["skipped"] == {"train": ["2", "3", "8"]}
    with pytest.raises(MissingError, match="3 images cannot be decoded"):
        Parquet(**options, on_error="skip", max_errors=2).count("train")
    with pytest.raises(MissingError, match=r"train-0\.parquet row 3 holds no image bytes"):
        Parquet(**options).images("train", np.array([2]))


def test_data_check_still_names_them_all(rela: Rela, root: Path) -> None:
    words = ("dataset=image_folder", f"dataset.root={root}", "dataset.on_error=skip", "dataset.image_size=8")
    done = rela("data", "check", *words)
    assert done.returncode == 3
    for broken in BROKEN.values():
        assert all(name in done.stderr for name in broken)


@pytest.mark.parametrize("word", ["dataset.on_error=ignore", "dataset.max_errors=-1"])
def test_keys_are_checked(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split("=")[0].replace(".", r"\.")):
        compose(["dataset=image_folder", "dataset.root=x", word])


# ---------------------------------------------------------------------------------------------------------- odd folders


def test_odd_file_names(rela: Rela, tmp_path: Path) -> None:
    """Line breaks, quotes, braces, other scripts, a leading dash, and bytes that are no UTF-8."""
    odd = ["a\nb", "it's", '"q"', "{x}", "$HOME", "-rf", "日本", " spaced ", "%s", "x" * 200, os.fsdecode(b"\xff\xfe")]
    for i, name in enumerate(odd):
        paint(tmp_path / "photos" / "train" / f"{'ab'[i % 2]} [1]" / f"{name}.png", i)
        paint(tmp_path / "photos" / "test" / f"{'ab'[i % 2]} [1]" / f"{name}.png", i)
    (tmp_path / "photos" / "train" / "a [1]" / os.fsdecode(b"broken\xff.png")).write_bytes(b"")
    words = ("dataset=image_folder", "dataset.root=photos", "dataset.image_size=8", *TRAIN)
    refused = rela("train", *words)
    assert refused.returncode == 3
    assert "broken" in refused.stderr and "cannot be read as an image" in refused.stderr
    done = rela("train", *words, "dataset.on_error=skip")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs" / "runs" / "latest" / "result.json").read_text())
    assert (result["train_samples"], result["skipped"]["count"]) == (len(odd), 1)


def make_dangling(top: Path) -> str:
    (top / "train" / "a" / "link.png").symlink_to("/nowhere/x.png")
    return "is a link to nothing"


def make_loop(top: Path) -> str:
    (top / "train" / "a" / "again").symlink_to("..")
    return "is a link to a folder that it lies in"


def make_knot(top: Path) -> str:
    (top / "train" / "a" / "x.png").symlink_to("x.png")
    return "is a link that leads to itself"


def make_pipe(top: Path) -> str:
    os.mkfifo(top / "train" / "a" / "x.png")
    return "is a pipe"


def make_socket(top: Path) -> str:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(top / "train" / "a")  # their names may not be long
        one.bind("x.png")
        os.chdir(here)
    return "is a socket"


def make_device(top: Path) -> str:
    (top / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    return "is a device"


def make_deep(top: Path) -> str:
    paint(top.joinpath("train", "a", *"x" * 102, "0.png"), 0)
    return "lies more than 100 folders deep"


def make_locked(top: Path) -> str:
    (top / "train" / "locked").mkdir()
    (top / "train" / "locked").chmod(0)
    return "cannot be looked into: Permission denied"


ODD = [make_dangling, make_loop, make_knot, make_pipe, make_socket, make_device, make_deep, make_locked]


@pytest.mark.parametrize("make", ODD)
def test_what_cannot_be_an_image_is_named_or_left_out(
    tmp_path: Path, make: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is opened, so nothing waits for ever."""
    top = tmp_path / "photos"
    for i in range(16):
        paint(top / ("train" if i < 12 else "test") / "ab"[i % 2] / f"{i:02}.png", i)
    clean = folder(top).identity
    complaint = make(top)
    if make is make_locked:
        deny(monkeypatch, top / "train" / "locked")
    with pytest.raises(MissingError, match=f"photos/train/.* {complaint}.*on_error=skip"):
        folder(top, on_error="raise").count("train")
    skipping = folder(top)
    assert (skipping.count("train"), skipping.count("test"), skipping.classes) == (12, 4, ["a", "b"])
    assert [complaint] == list(skipping.skipped["train"].values())
    assert skipping.identity["listing"] == clean["listing"], "as if it were not there"
    with pytest.raises(MissingError, match=r"1 image cannot be decoded, more than dataset\.max_errors=0"):
        folder(top, max_errors=0).count("train")


def deny(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Root may look into every folder, so the system's answer to everybody else is put in its place."""
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if Path(path) == place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)


def test_data_check_names_what_cannot_be_an_image(rela: Rela, root: Path) -> None:
    make_dangling(root), make_pipe(root), make_loop(root)
    (root / "train" / "c").mkdir()
    (root / "train" / "notes.txt").write_text("x")
    done = rela("data", "check", "dataset=image_folder", f"dataset.root={root}")
    assert done.returncode == 3
    for words in ("link.png is a link to nothing", "x.png is a pipe", "again is a link to a folder", "truncated.png"):
        assert words in done.stderr
    assert "broken       8 of 40\n" in done.stdout, "37 files and three that are none"
    assert "empty        class folders without an image: c" in done.stdout
    assert "not used     one file without the name of an image (train/notes.txt)" in done.stdout
    assert " at 0x" not in done.stdout + done.stderr, "no addresses in memory"
    shutil.rmtree(root / "test")
    done = rela("data", "check", "dataset=image_folder", f"dataset.root={root}")
    assert "no numbers   a run will train and not be probed: " in done.stdout
    assert "for numbers sort the images into train/<class>/* and test/<class>/*" in done.stdout


def test_a_bit_in_the_note_of_what_is_left_out(root: Path, tmp_path: Path) -> None:
    """One name that became another would leave out a good image and keep a broken one."""
    assert names(folder(root, cache=tmp_path)) == BROKEN
    path = next((tmp_path / "index").glob("*/broken.json"))
    path.write_text(path.read_text().replace("truncated.png", "00.png"))
    assert names(folder(root, cache=tmp_path)) == BROKEN


def test_an_empty_class_folder_and_a_folder_without_classes(root: Path) -> None:
    (root / "train" / "c").mkdir()
    paint(root / "test" / "c" / "0.png", 0)
    with pytest.raises(MissingError, match=r"no images in \S+train/c.*dataset\.on_error=skip"):
        folder(root, on_error="raise").count("train")
    skipping = folder(root)
    assert (skipping.count("train"), skipping.count("test"), skipping.classes) == (24, 8, ["a", "b"])
    assert set(skipping.load("test")[1]) == {0, 1}, "the class is left out of test, too"
    flat = folder(root / "train" / "a")
    assert (flat.classes, flat.count("train")) == (None, 12)
    assert flat.why_unprobed is not None
    (root / "nothing").mkdir()
    with pytest.raises(MissingError, match="no images in"):
        folder(root / "nothing").count("train")
