"""The digits, and images that are made up."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rela_cli.data.datasets import Digits, Fake, digits_table
from tests.conftest import ROOT
from tests.data.test_folders import COMMON, digest


def test_digits_split_is_fixed_and_stratified() -> None:
    digits = Digits(**{**COMMON, "flip": False})
    train, train_labels = digits.load("train")
    test, test_labels = digits.load("test")
    assert (train.shape, test.shape) == ((1437, 8, 8, 3), (360, 8, 8, 3))
    assert train.dtype == test.dtype == np.uint8
    assert (train.min(), train.max()) == (0, 255)
    for digit in range(10):
        whole = (train_labels == digit).sum() + (test_labels == digit).sum()
        assert abs((test_labels == digit).sum() - whole * 360 / 1797) < 1
    assert [digest(a) for a in (train, train_labels, test, test_labels)] == [
        "90e9b946e2f7b056",
        "c6998aee152d051a",
        "a0338df879a57c48",
        "bbdde94425e6bd92",
    ]


def test_digits_are_read_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as its own loader's, which is still there for the day that the file is not."""
    gray, labels = digits_table()
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    theirs, truth = digits_table()
    assert np.array_equal(gray, theirs) and np.array_equal(labels, truth)
    program = "import sys; from rela_cli.data.datasets import digits_table; digits_table()"
    program += "; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_digits_are_all_there_once() -> None:
    from sklearn.datasets import load_digits

    digits = Digits(**COMMON)
    together = np.concatenate([digits.load(split)[0][..., 0] for split in ("train", "test")]).reshape(1797, -1)
    original = np.rint(load_digits().data * 255 / 16)
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(map(bytes, original.astype(np.uint8)))


def test_limits_of_train_and_test_are_apart() -> None:
    limited = Digits(**{**COMMON, "limit": 100, "test_limit": 50})
    assert (limited.count("train"), limited.count("test")) == (100, 50)
    assert (len(limited.load("train")[0]), len(limited.load("test")[0])) == (100, 50)
    assert np.array_equal(Digits(**{**COMMON, "limit": 100}).load("test")[0], Digits(**COMMON).load("test")[0])
    whole = {bytes(image) for image in Digits(**COMMON).load("train")[0]}
    assert {bytes(image) for image in limited.load("train")[0]} <= whole
    other = Digits(**{**COMMON, "limit": 100, "seed": 1})
    assert not np.array_equal(other.load("train")[0], limited.load("train")[0])
    assert other.identity != limited.identity


def test_fake() -> None:
    fake = Fake(n=40, n_test=12, size=6, classes=3, **COMMON)
    images, labels = fake.load("train")
    assert images.shape == (40, 6, 6, 3)
    assert np.bincount(labels).tolist() == [14, 13, 13]
    assert np.array_equal(images, Fake(n=40, n_test=12, size=6, classes=3, **COMMON).load("train")[0])
    assert not np.array_equal(images[:12], fake.load("test")[0])
    assert not np.array_equal(
        images, Fake(n=40, n_test=12, size=6, classes=3, **{**COMMON, "seed": 1}).load("train")[0]
    )


def test_a_fake_image_is_a_function_of_its_index() -> None:
    """Whatever is asked for beside it, and however many there are; a billion of them take no room."""
    few, many = (Fake(n=n, n_test=12, size=6, classes=3, **COMMON) for n in (40, 10**9))
    rows = np.array([39, 7, 39])
    assert np.array_equal(few.images("train", rows), few.load("train")[0][rows])
    assert np.array_equal(many.images("train", rows), few.images("train", rows))
    assert np.array_equal(many.prefetch("train", rows)(1), few.image("train", 7))
    assert (few.on_disk, many.on_disk) == (False, True)
    assert not np.array_equal(many.image("train", 10**9 - 1), many.image("train", 10**9 - 2))


def test_fake_images_are_noise_with_a_tint() -> None:
    images, labels = Fake(n=3000, n_test=1, size=8, classes=3, **COMMON).load("train")
    assert labels is not None
    tints = [images[labels == label].astype(float).mean((0, 1, 2)) for label in range(3)]
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(tints, 2)) > 5
    noise = images - images[labels == 0].min(axis=(0, 1, 2))
    assert abs(noise[labels == 0].astype(float).mean() - 79.5) < 0.5, "0 to 159, each as often"
    pixels = images[labels == 0].reshape(1000, -1).astype(float)
    assert np.abs(np.corrcoef(pixels[:, :50].T) - np.eye(50)).max() < 5 / 1000**0.5
    assert np.abs(np.corrcoef(pixels[:50]) - np.eye(50)).max() < 0.6, "the tint alone is shared"
