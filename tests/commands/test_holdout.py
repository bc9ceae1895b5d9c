"""`rela data holdout`: what is linked, and that no test image is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rela_cli.cli import main
from rela_cli.commands.data import holdout
from rela_cli.config.compose import compose
from rela_cli.config.parts import instantiate
from rela_cli.errors import ConfigError, RelaError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 cats, one of them in a folder of its own, 20 dogs, and 5 test images of each; nothing here is decoded."""
    for split, counts in {"train": {"cat": 30, "dog": 20}, "test": {"cat": 5, "dog": 5}}.items():
        for name, count in counts.items():
            for i in range(count):
                path = (
                    tmp_path / "photos" / split / name / ("deep/0.jpg" if (split, i) == ("train", 29) else f"{i}.jpg")
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{split} {name} {i}".encode())
    return tmp_path / "photos"


def words(photos: Path, *more: str) -> list[str]:
    return ["dataset=image_folder", f"dataset.root={photos}", f"paths.outputs={photos.parent / 'outputs'}", *more]


def held(folder: Path) -> dict[str, list[str]]:
    return {split: sorted(p.read_text() for p in (folder / split).glob("*/*")) for split in ("train", "test")}


def test_every_train_image_is_in_one_split_and_no_test_image_in_any(photos: Path, tmp_path: Path) -> None:
    to = tmp_path / "chosen-by"
    assert holdout.main([*words(photos), "--to", str(to), "--share", "0.2"]) == 0
    found = held(to)
    everything = sorted(p.read_text() for p in (photos / "train").rglob("*.jpg"))
    assert sorted(found["train"] + found["test"]) == everything
    assert [len(list((to / "test" / name).iterdir())) for name in ("cat", "dog")] == [6, 4]
    again = instantiate(compose(words(to)).dataset)
    assert again.classes == ["cat", "dog"]
    assert (again.count("train"), again.count("test")) == (40, 10)
    assert not [*tmp_path.glob(".*.tmp")]


def test_the_same_call_again_does_nothing_and_another_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "chosen-by"
    (tmp_path / ".chosen-by.tmp" / "train").mkdir(parents=True)  # of a call that was killed
    holdout.main([*words(photos), "--to", str(to)])
    before = held(to)
    capsys.readouterr()
    holdout.main([*words(photos), "--to", str(to)])
    assert "already there" in capsys.readouterr().out
    assert held(to) == before
    with pytest.raises(RelaError, match="holds something else"):
        holdout.main([*words(photos, "dataset.seed=1"), "--to", str(to)])


def test_limit_and_seed_are_the_datasets_own(photos: Path, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        to = tmp_path / f"to-{len(found)}"
        holdout.main([*words(photos, f"dataset.seed={seed}", "dataset.limit=25"), "--to", str(to), "--share=0.2"])
        found.append(held(to))
    assert [len(found[0][split]) for split in ("train", "test")] == [20, 5]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "say where to"),
        (["--to", "x", "--share", "1"], "--share=1 must be a number above 0 and below 1"),
        (["--to", "x", "--share", "ten"], "--share=ten must be"),
        (["--to", "x", "--share", "0.001"], "leaves no image"),
    ],
)
def test_what_cannot_be_done_is_said(
    more: list[str], message: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        holdout.main([*words(photos), *more])
    assert not (tmp_path / "x").exists()


def test_pixels_without_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "holdout", "dataset=digits", "--to", str(tmp_path / "x")]) == 2
    assert "makes links to files in class folders" in capsys.readouterr().err
