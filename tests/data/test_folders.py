"""Folders as people have them, what counts in them, and what moves a fingerprint."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli.data.datasets import Cifar10
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, MissingError, RelaError
from tests.conftest import ROOT, Rela

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def paint(path: Path, colour: int, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (colour, 0, 255 - colour)).save(path)


def folder(root: Path, files: list[str]) -> Path:
    for i, name in enumerate(files):
        paint(root / name, (37 * i) % 256)
    return root


def image_folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(root=str(root), **{**COMMON, "image_size": None, **options})


BOTH = ["train/b/0.png", "train/b/1.png", "train/a/x.png", "HELD/a/y.png", "HELD/b/z.png", "HELD/b/w.PNG"]


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Test"])
def test_train_with_test_or_val(tmp_path: Path, held_out: str) -> None:
    dataset = image_folder(folder(tmp_path, [name.replace("HELD", held_out) for name in BOTH]))
    assert dataset.classes == ["a", "b"]
    assert dataset.why_unprobed is None
    assert (dataset.count("train"), dataset.count("test")) == (3, 3)
    images, labels = dataset.load("train")
    assert labels.tolist() == [0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [74, 0, 37]
    assert dataset.load("test")[1].tolist() == [0, 1, 1]


def test_test_goes_before_val(tmp_path: Path) -> None:
    names = [*BOTH, "val/a/1.png"]
    assert image_folder(folder(tmp_path, [n.replace("HELD", "test") for n in names])).count("test") == 3


def test_classes_only_and_loose_files_train_but_cannot_be_probed(tmp_path: Path) -> None:
    classes = image_folder(folder(tmp_path / "classes", ["a/0.png", "b/1.png"]))
    assert classes.load("train")[1].tolist() == [0, 1]
    assert "no train/ with a test/ or val/ beside it" in str(classes.why_unprobed)
    loose = image_folder(folder(tmp_path / "loose", ["0.png", "1.png", "more/2.png"]))
    assert loose.classes is None
    assert loose.load("train")[1] is None
    assert loose.count("train") == 3
    assert loose.count("test") == 0
    assert "no class folders" in str(loose.why_unprobed)


def test_unlabelled_train_beside_a_labelled_test(tmp_path: Path) -> None:
    dataset = image_folder(folder(tmp_path, ["train/0.png", "train/1.png", "test/a/0.png"]))
    assert (dataset.count("train"), dataset.count("test")) == (2, 0)
    assert dataset.why_unprobed


def test_sub_folders_belong_to_their_class(tmp_path: Path) -> None:
    dataset = image_folder(folder(tmp_path, ["train/a/deep/er/0.png", "train/b/1.png", "test/b/0.png"]))
    assert dataset.load("train")[1].tolist() == [0, 1]
    assert dataset.load("test")[1].tolist() == [1]


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.root=FOLDER"):
        ImageFolder(root=None, image_size=None, **COMMON)
    with pytest.raises(MissingError, match=r"nowhere is not a folder \(looked at /"):
        image_folder(Path("nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no images in"):
        image_folder(tmp_path / "empty").count("train")
    folder(tmp_path / "strange", ["train/a/0.png", "test/a/0.png", "test/z/0.png"])
    with pytest.raises(MissingError, match="classes that train lacks: z"):
        image_folder(tmp_path / "strange")
    folder(tmp_path / "gap", ["train/a/0.png", "test/a/0.png"])
    (tmp_path / "gap" / "train" / "nothing").mkdir()
    with pytest.raises(MissingError, match=r"gap/train/nothing: remove the folder or fill it"):
        image_folder(tmp_path / "gap").count("train")


def test_other_files_are_ignored(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/0.png"])
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    (tmp_path / "train" / "README.md").write_text("x")
    assert image_folder(tmp_path).count("train") == 2


def test_every_suffix_that_pillow_reads_counts(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/0.png"])
    image = Image.new("RGB", (8, 8))
    suffixes = ["jp2", "tga", "jpe", "pnm", "dib", "ico", "pcx", "JPG"]
    for suffix in suffixes:
        image.save(tmp_path / "train" / "a" / f"x.{suffix}")
    image.save(tmp_path / "train" / "a" / "x.apng", "PNG")
    assert image_folder(tmp_path, image_size=8).load("train")[0].shape == (11, 8, 8, 3)


def test_names_with_a_dot_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/0.png"])
    before = image_folder(tmp_path)
    assert before.count("train") == 2
    said = capsys.readouterr().err
    paint(tmp_path / "train" / ".ipynb_checkpoints" / "0.png", 1)
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"Mac OS X")
    after = image_folder(tmp_path)
    assert (after.classes, after.count("train"), after.identity) == (["a", "b"], 2, before.identity)
    assert "2 whose names begin with a dot (train/.ipynb_checkpoints, train/a/._0.png)" in capsys.readouterr().err
    assert said == ""


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_beside_the_class_folders_is_named_and_decides_nothing(
    tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, [*[name.replace("HELD", "test") for name in BOTH], "extra/0.png"])
    paint(tmp_path / split / "preview.png", 5)
    dataset = image_folder(tmp_path)
    assert (dataset.count("train"), dataset.count("test"), dataset.why_unprobed) == (3, 3, None)
    assert dataset.load("train")[1].tolist() == [0, 1, 1]
    assert dataset.load("test")[1].tolist() == [0, 1, 1]
    said = capsys.readouterr().err
    assert f"one image beside the class folders ({split}/preview.png); the folders extra" in said


def test_a_test_folder_without_images_is_no_test_set(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png"])
    (tmp_path / "test" / "a").mkdir(parents=True)
    dataset = image_folder(tmp_path)
    assert (dataset.count("train"), dataset.count("test")) == (2, 0)
    assert "no images in" in str(dataset.why_unprobed) and "sort the images into" in str(dataset.why_unprobed)


def test_names_under_another_locale(tmp_path: Path) -> None:
    """Classes whose names are not ASCII, where Python takes the file system to be ASCII: the same dataset."""
    folder(tmp_path, ["train/café/0.png", "train/日本/1.png", "test/café/ü.png"])
    program = (
        "import sys; from rela_cli.data.folders import ImageFolder; from rela_cli.store.files import fingerprint\n"
        f"d = ImageFolder(root={str(tmp_path)!r}, image_size=8, limit=None, test_limit=None, seed=0, flip=True)\n"
        "images, labels = d.load('test'); print(sys.getfilesystemencoding(), d.labels('train').tolist(), labels)\n"
        "print(images.mean(), fingerprint(d.identity))"
    )
    found = []
    for locale in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **locale}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split(maxsplit=1))
    assert [encoding for encoding, _ in found] == ["utf-8", "ascii"]
    assert found[0][1] == found[1][1]


def test_a_limit_takes_of_every_class(tmp_path: Path) -> None:
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(10)] + ["test/a/0.png", "test/b/0.png"]
    dataset = image_folder(folder(tmp_path, names), limit=6)
    assert dataset.count("train") == 6
    assert np.bincount(dataset.load("train")[1]).tolist() == [3, 3]


def test_what_moves_the_fingerprint(tmp_path: Path) -> None:
    root = folder(tmp_path / "here", [name.replace("HELD", "test") for name in BOTH])
    first = image_folder(root).identity
    assert image_folder(root).identity == first
    assert image_folder(Path(os.path.relpath(root))).identity == first
    (root / "train" / "notes.txt").write_text("not an image")
    assert image_folder(root).identity == first
    moved = tmp_path / "there"
    shutil.copytree(root, moved)  # keeps times
    assert image_folder(moved).identity == first, "the place of a dataset does not count"
    assert image_folder(root, limit=2).identity != first
    assert image_folder(root, seed=1).identity != first
    assert image_folder(root, image_size=4).identity != first
    paint(root / "train" / "a" / "new.png", 9)
    added = image_folder(root).identity
    assert added != first
    target = root / "train" / "a" / "x.png"
    before = target.stat()
    paint(target, 99)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = image_folder(root).identity
    assert changed not in (first, added)
    (root / "test" / "b" / "z.png").rename(root / "test" / "a" / "z.png")
    assert image_folder(root).identity != changed


def test_cifar10_that_is_not_there(tmp_path: Path) -> None:
    dataset = Cifar10(root=str(tmp_path / "data"), download=False, **COMMON)
    assert (dataset.count("train"), dataset.count("test")) == (50_000, 10_000)
    with pytest.raises(MissingError, match=r"CIFAR-10 is not in dataset.root=.*cifar-10-batches-py"):
        dataset.load("train")


def test_cifar10_that_is_not_there_ends_with_3(rela: Rela) -> None:
    done = rela("extract", "dataset=cifar10", "dataset.download=false", "prior=random", "prior.width=4")
    assert done.returncode == 3, done.stderr
    assert "cifar-10-batches-py" in done.stderr


def test_a_missing_root_ends_with_3_and_leaves_nothing(rela: Rela, tmp_path: Path) -> None:
    done = rela("train", "dataset=image_folder", "dataset.root=nowhere")
    assert (done.returncode, "nowhere is not a folder" in done.stderr) == (3, True)
    assert not list((tmp_path / "outputs").glob("*/*")) if (tmp_path / "outputs").exists() else True


def test_errors_are_ours() -> None:
    assert issubclass(MissingError, RelaError)
    assert (MissingError.exit_code, ConfigError.exit_code) == (3, 2)
