"""A flat folder and a CSV file: all images train, the labelled ones are divided; what does not fit is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli import cli
from rela_cli.data.decoding.undecodable import say_once
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import MissingError
from tests.factories import pixels
from tests.promises.helpers import go, only, read

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True, "image_size": 8}
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 images in flat/, some of them deeper; of 30 the class is known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat" / "deep").mkdir(parents=True)
    for number, image in enumerate(pixels(40, 8)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"flat/{name(number)}")
    say_once.cache_clear()
    return tmp_path


def name(number: int) -> str:
    return f"deep/{number:02}.png" if number % 4 == 0 else f"{number:02}.png"


def rows(count: int = 30) -> list[str]:
    """15 cats, 10 dogs, 5 owls, in that proportion."""
    kinds = [*["cat"] * 15, *["dog"] * 10, *["owl"] * 5]
    return [f"{name(i)},{kinds[i]}" for i in range(count)]


def folder(lines: list[str], head: str = "file,class", **options: Any) -> ImageFolder:
    Path("labels.csv").write_text("\n".join([*([head] if head else []), *lines]) + "\n", encoding="utf-8")
    return ImageFolder("flat", labels="labels.csv", **{**COMMON, **options})


def pairs(dataset: ImageFolder, split: str) -> dict[str, str]:
    """Path -> class of a split's images."""
    labels, classes = dataset.labels(split), dataset.classes
    assert labels is not None and classes is not None
    paths = [str(path.relative_to("flat")) for path in dataset.encoded_images(split)]
    return {path: classes[label] for path, label in zip(paths, labels, strict=True)}


def test_all_images_train_and_the_labelled_ones_are_divided(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = folder(rows())
    assert [dataset.count(split) for split in ("train", "labelled", "test")] == [40, 24, 6]
    assert dataset.labels("train") is None
    fit, test = pairs(dataset, "labelled"), pairs(dataset, "test")
    assert not set(fit) & set(test)
    assert fit | test == dict(row.split(",") for row in rows())
    assert Counter(test.values()) == {"cat": 3, "dog": 2, "owl": 1}
    said = capsys.readouterr().err
    assert "30 of 40 images have labels, 3 classes: 24 fit the probe, 6 test it (stratified, dataset.seed=0)" in said
    first = dataset.images("test", np.array([0]))[0]
    assert np.array_equal(first, np.asarray(Image.open(next(iter(dataset.encoded_images("test"))))))


def test_the_division_is_the_seeds_and_part_of_the_identity() -> None:
    same, other = (pairs(folder(rows(), seed=seed), "test") for seed in (0, 1))
    assert same == pairs(folder(rows()[::-1]), "test"), "the order of the rows does not count"
    assert same != other
    identities = [folder(rows()).identity, folder(rows(), seed=1).identity, folder(rows()[:-1]).identity]
    identities += [folder(rows(), test_share=0.5).identity, ImageFolder("flat", **COMMON).identity]
    assert len({str(identity) for identity in identities}) == 5


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("", lambda row: row),
        ("id,breed", lambda row: row.replace(".png", "")),
        ("class;note;file", lambda row: ";".join([row.split(",")[1], "x", row.split(",")[0]])),
        ("file\tclass", lambda row: row.replace(",", "\t")),
        ("\ufefffile,class", lambda row: "./" + row.replace("/", "\\")),
        ("File , Label", lambda row: row.replace(",", " , ")),
    ],
    ids=["no head", "without suffix", "columns by name", "tabs", "BOM, backslashes", "spaces"],
)
def test_files_as_people_have_them(head: str, change: Any) -> None:
    dataset = folder([change(row) for row in rows()], head)
    assert pairs(dataset, "labelled") | pairs(dataset, "test") == dict(row.split(",") for row in rows())


WRONG = {
    "missing": (["nosuch.png,cat"], "names files that are not there: 1 (nosuch.png)"),
    "empty": (["31.png,"], "has rows without a class: 1 (31.png)"),
    "few": (["31.png,fox"], "has classes with fewer than 2 images: 1 (fox (1))"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_and_may_be_left_out(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    more, said = WRONG[case]
    with pytest.raises(MissingError) as caught:
        folder([*rows(), *more]).count("train")
    assert said in str(caught.value) and "dataset.on_error=skip" in str(caught.value)
    dataset = folder([*rows(), *more], on_error="skip")
    assert (dataset.count("train"), dataset.count("labelled") + dataset.count("test")) == (40, 30)
    assert dataset.classes == list(CLASSES)
    assert said.replace(": 1", ", left out: 1") in capsys.readouterr().err


def test_a_name_that_stands_twice(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = folder([*rows(), rows()[3]])
    assert dataset.count("labelled") + dataset.count("test") == 30
    assert "names 1 (03.png) more than once" in capsys.readouterr().err
    for options in ({}, {"on_error": "skip"}):
        with pytest.raises(MissingError, match=r"gives two classes to 03.png \(cat, dog\)"):
            folder([*rows(), "03.png,dog"], **options).count("train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("file\na.png\n", "row 1: two columns are wanted"),
        ("file,class\n01.png,cat\n02.png,cat\n", "labels images of 1 classes, and a probe needs two"),
        (b"\xff\xfe", "it is not UTF-8"),
    ],
)
def test_no_such_file_of_labels(text: str | bytes, said: str) -> None:
    Path("labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MissingError, match=said):
        ImageFolder("flat", labels="labels.csv", **COMMON).count("train")
    with pytest.raises(MissingError, match=r"nowhere\.csv cannot be read"):
        ImageFolder("flat", labels="nowhere.csv", **COMMON)


def test_an_image_that_cannot_be_decoded_is_left_out_of_every_split() -> None:
    Path("flat/01.png").write_bytes(b"no")
    dataset = folder(rows(), on_error="skip", max_errors=1)
    assert [dataset.count(split) for split in ("train", "labelled", "test")] in ([39, 23, 6], [39, 24, 5])
    assert "01.png" not in pairs(dataset, "labelled") | pairs(dataset, "test")
    assert {split: list(names) for split, names in dataset.skipped.items()} == {"train": ["01.png"]}


def test_a_run_a_check_and_a_pack(capsys: pytest.CaptureFixture[str]) -> None:
    Path("flat/labels.csv").write_text("file,class\n" + "\n".join(rows()) + "\n")
    data = ["dataset=image_folder", "dataset.root=flat", "dataset.labels=labels.csv", "dataset.image_size=8"]
    words = [*data, "learner.width=4", "runtime.threads=1", "epochs=1", "batch_size=8", "prior=none"]
    go(Path("outputs"), *words, "probe.protocols=[knn]", "probe.knn_k=3", "probe.baselines=false")
    result = read(only(Path("outputs"), "runs/*-*/result.json"))
    assert (result["train_samples"], result["test_samples"], result["classes"]) == (40, 6, 3)
    assert 0 <= result["probe"]["knn"]["top1"] <= 1
    assert cli.main(["data", "check", *data]) == 0
    assert "not used" not in capsys.readouterr().out
    assert cli.main(["data", "pack", *data, "--to", "pack"]) == 0
    facts = read(Path("pack/pack.json"))
    assert {split: part["samples"] for split, part in facts["splits"].items()} == {
        "train": 40,
        "labelled": 24,
        "test": 6,
    }
    assert cli.main(["train", *words, "method=supervised"]) == 2
    assert "its train images have no labels" in capsys.readouterr().err
