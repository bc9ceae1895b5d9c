"""Folders of images with masks: layouts, Pascal VOC as torchvision lists it, and masks that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli.data.segmentation import Segmentation, Voc
from rela_cli.errors import ConfigError, MissingError, RelaError

COMMON = {"limit": None, "test_limit": None, "seed": 0, "flip": True}


def opened(root: Path, **options: Any) -> Segmentation:
    return Segmentation(str(root), **{"image_size": None, **COMMON, **options})


def put(root: Path, name: str, mask: np.ndarray, size: tuple[int, int] | None = None, suffix: str = "png") -> Path:
    """An image and its mask; the path of the mask."""
    height, width = size or mask.shape[:2]
    noise = np.random.RandomState(0).randint(0, 255, (height, width, 3)).astype(np.uint8)
    for folder in ("images", "masks"):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(root / "images" / f"{name}.{suffix}")
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root / "masks" / f"{name}.png"


def plain(*numbers: int, side: int = 8) -> np.ndarray:
    """A mask of stripes."""
    return np.resize(np.array(numbers, np.uint8), (side, side))


@pytest.mark.parametrize("layout", [("train", "val"), ("training", "test")])
def test_train_and_val_as_they_lie(layout: tuple[str, str], tmp_path: Path) -> None:
    for part, names in zip(layout, (("a", "deep/b"), ("c",)), strict=True):
        for name in names:
            put(tmp_path / part, name, plain(0, 1, 255), suffix="jpg")
    found = opened(tmp_path)
    assert (found.full_count("train"), found.full_count("test")) == (2, 1)
    assert found.masks("train", np.arange(2)).tolist() == [plain(0, 1, 255).tolist()] * 2
    assert found.classes is None and found.choose("train")[1] is None and found.has_masks


def test_without_train_and_val_a_share_is_held_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        put(tmp_path, f"{number}", plain(0, 1))
    parts = [opened(tmp_path, test_share=0.3, seed=seed).pairs for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(parts[0][split]) for split in ("train", "test")] == [7, 3]
    assert not {*parts[0]["train"]} & {*parts[0]["test"]}
    assert "3 of its 10 images test, drawn by dataset.seed=0" in " ".join(capsys.readouterr().err.split())


def test_masks_are_cut_and_resized_as_images_without_new_numbers(tmp_path: Path) -> None:
    """A wide image of two halves: what is shown is its middle, and a mask drawn into the image agrees with it."""
    mask = np.repeat(np.array([[0, 0, 1, 1, 1, 2, 2, 2, 2, 0]], np.uint8), 6, axis=0).repeat(4, 0).repeat(4, 1)
    put(tmp_path / "train", "a", mask)
    put(tmp_path / "val", "b", mask)
    Image.fromarray(np.repeat(mask[:, :, None] * 100, 3, axis=2)).save(tmp_path / "train" / "images" / "a.png")
    found = opened(tmp_path, image_size=12)
    (shown,), (pixels,) = found.masks("train", np.array([0])), found.images("train", np.array([0]))
    assert shown.shape == (12, 12) and set(np.unique(shown)) <= {0, 1, 2}
    assert (np.rint(pixels[:, :, 0] / 100) == shown).mean() > 0.9


def test_palette_masks_hold_numbers_and_another_label_may_be_ignored(tmp_path: Path) -> None:
    path = put(tmp_path / "train", "a", plain(0, 1, 9))
    picture = Image.fromarray(plain(0, 1, 9))
    picture.putpalette([n * 7 % 256 for n in range(768)])
    picture.save(path)
    assert Image.open(path).mode == "P"
    put(tmp_path / "val", "b", plain(0, 1))
    assert set(np.unique(opened(tmp_path, ignore_label=9).masks("train", np.array([0])))) == {0, 1, 255}
    assert 9 in opened(tmp_path).masks("train", np.array([0]))


def test_an_image_turned_by_exif_is_as_large_as_it_is_shown(tmp_path: Path) -> None:
    for part in ("train", "val"):
        put(tmp_path / part, "a", np.zeros((8, 4), np.uint8), size=(4, 8), suffix="jpg")
        picture = Image.open(tmp_path / part / "images" / "a.jpg")
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(tmp_path / part / "images" / "a.jpg", exif=exif)
    assert opened(tmp_path).masks("train", np.array([0])).shape == (1, 8, 4)


def test_the_identity_follows_masks_and_settings(tmp_path: Path) -> None:
    path = put(tmp_path / "train", "a", plain(0, 1))
    put(tmp_path / "val", "b", plain(0, 1))
    before = opened(tmp_path).identity
    assert opened(tmp_path).identity == before != opened(tmp_path, ignore_label=None).identity
    Image.fromarray(plain(0, 1, 1)).save(path)
    assert opened(tmp_path).identity != before


def rgb(root: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(put(root / "train", "a", plain(0, 1)))


def other_size(root: Path) -> None:
    put(root / "train", "a", plain(0, 1), size=(10, 8))


def strange(root: Path) -> None:
    put(root / "train", "a", plain(0, 1))
    put(root / "val", "b", plain(0, 7))


def gone(root: Path) -> None:
    put(root / "train", "a", plain(0, 1)).unlink()


def broken(root: Path) -> None:
    put(root / "train", "a", plain(0, 1)).write_bytes(b"no picture")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "colours": (rgb, r"a.png is RGB, which holds colours and no class numbers: save a grey or palette PNG"),
    "another size": (
        other_size,
        r"a.png is 8x8 pixels and its image .*a.png is 8x10: save it in the size of its image",
    ),
    "a label outside": (strange, r"b.png has the label 7; the train masks have 0 to 1.*dataset.ignore_label=7"),
    "no mask": (gone, r"a.png has no mask: .*masks/a.png is not there \(1 of 1 images have none\)"),
    "no picture": (broken, r"the mask .*a.png cannot be read: Pillow knows no image format"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_with_a_way_out(name: str, tmp_path: Path) -> None:
    spoil, said = BAD[name]
    put(tmp_path / "val", "b", plain(0, 1))
    spoil(tmp_path)
    with pytest.raises(MissingError, match=said):
        found = opened(tmp_path)
        for split in ("train", "test"):
            found.masks(split, np.arange(found.full_count(split)))


def test_a_list_of_classes_bounds_the_labels(tmp_path: Path) -> None:
    put(tmp_path / "train", "a", plain(0, 2))
    put(tmp_path / "val", "b", plain(0, 1))
    (tmp_path / "classes.txt").write_text("nothing\ncat\n")
    with pytest.raises(MissingError, match=r"a.png has the label 2; classes go from 0 to 1, and 255"):
        opened(tmp_path, class_list="classes.txt").masks("train", np.array([0]))
    (tmp_path / "classes.txt").write_text("nothing\ncat\ndog\n")
    assert opened(tmp_path, class_list="classes.txt").classes == ["nothing", "cat", "dog"]


@pytest.mark.parametrize(
    ("prepare", "kind", "said"),
    [
        ((), MissingError, "has no images/ with masks/ beside it"),
        (("images",), MissingError, "no images in"),
        (("file:classes.txt",), ConfigError, "must name 2 to 255 classes"),
    ],
)
def test_a_folder_of_another_kind_is_named(
    prepare: tuple[str, ...], kind: type[RelaError], said: str, tmp_path: Path
) -> None:
    for name in prepare:
        if name.startswith("file:"):
            (tmp_path / name.removeprefix("file:")).write_text("one\none\n")
        else:
            (tmp_path / name).mkdir()
    with pytest.raises(kind, match=said):
        found = opened(tmp_path, class_list="classes.txt" if kind is ConfigError else None)
        assert found.pairs if kind is MissingError else found.classes


def test_voc_is_what_torchvision_lists(tmp_path: Path) -> None:
    from torchvision.datasets import VOCSegmentation

    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split, names in (("train", ("2007_2", "2007_1")), ("val", ("2008_1",))):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            Image.new("RGB", (12, 9)).save(folder / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(np.resize(np.array([0, 15, 255], np.uint8), (9, 12))).save(
                folder / "SegmentationClass" / f"{name}.png"
            )
    ours = Voc(str(tmp_path), download=False, image_size=8, **COMMON)
    for split, named in (("train", "train"), ("test", "val")):
        theirs = VOCSegmentation(str(tmp_path), "2012", named)
        assert ours.pairs[split] == [(Path(i), Path(m)) for i, m in zip(theirs.images, theirs.masks, strict=True)]
    assert ours.masks("train", np.arange(2)).shape == (2, 8, 8) and len(ours.classes) == 21
    with pytest.raises(MissingError, match=r"Pascal VOC 2012 is not in dataset.root="):
        assert Voc(str(tmp_path / "else"), download=False, image_size=8, **COMMON).pairs
