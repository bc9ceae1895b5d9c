"""Images with masks: a class for each pixel. Your own folders, and Pascal VOC as its archive unpacks.

A mask is a PNG whose pixels are class numbers (grey or palette, not colours), as large as its image. It is cut and
resized as the image is, by nearest neighbour, so that no number is made up between two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import decoder_message, is_image, orientation
from rela_cli.data.encoded import EncodedDataset
from rela_cli.data.files.splits import listed
from rela_cli.data.layout import HELD_OUT, TRAIN
from rela_cli.errors import ConfigError, MissingError
from rela_cli.numerics.integer_hash import mix32
from rela_cli.store.files import fingerprint
from rela_cli.store.notices import warn_once
from rela_cli.terminal import plural

IMAGES, MASKS = "images", "masks"
MOST = 254  # the largest class number
ADVICE = "save a grey or palette PNG whose pixels are class numbers from 0 on"
Pair = tuple[Path, Path]  # an image and its mask
VOC_CLASSES = """background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
person pottedplant sheep sofa train tvmonitor"""


class Segmentation(EncodedDataset):
    """A folder with images/ and masks/, or with such a pair in train/ and in val/; masks have their images' names.

    Without train/ and val/ a share of the images is held out, by a fixed draw from the dataset's seed.

    Args:
        class_list: a text file with a class name on each line, class 0 first. None: classes are the numbers in masks.
        ignore_label: a number in masks that is no class: such pixels count nowhere. None: there is none.
        background: the class of pixels that show no object; means are also given without it. None: there is none.

    Raises:
        ConfigError: no root. MissingError: no such folders, or an image without a mask.
    """

    kind = "segmentation"
    has_masks = True
    why_unprobed = "its labels are masks, a class for each pixel; probe.protocols=[segment] judges by them"

    def __init__(
        self,
        root: str | None,
        image_size: int | None,
        class_list: str | None = None,
        ignore_label: int | None = 255,
        background: int | None = 0,
        test_share: float = 0.2,
        **common: Any,
    ) -> None:
        super().__init__(image_size, image_size, **common)
        self.root, self.ignore_label, self.background = Path(self.needed(root)).expanduser(), ignore_label, background
        self.test_share, self.class_list = test_share, class_list
        self.highest = -1  # class in the train masks that were read

    # ------------------------------------------------------------------------------------------------- files

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Images and masks of each split."""
        if not self.root.is_dir():
            raise MissingError(f"dataset.root={self.root} is not a folder (looked at {os.path.realpath(self.root)})")
        train, test = self.first(TRAIN), self.first(HELD_OUT)
        if train and test:
            return {"train": pairs_in(train), "test": pairs_in(test)}
        if (self.root / IMAGES).is_dir():
            return self.divided(pairs_in(self.root))
        raise MissingError(
            f"dataset.root={self.root} has no images/ with masks/ beside it, and no train/images/ with val/images/: "
            f"put the pictures into images/ and their masks under the same names into masks/"
        )

    def first(self, names: Sequence[str]) -> Path | None:
        """The first of some folders that holds images/."""
        return next((self.root / name for name in names if (self.root / name / IMAGES).is_dir()), None)

    def divided(self, pairs: list[Pair]) -> dict[str, list[Pair]]:
        """Train and test images, where the folder does not separate them."""
        count = max(1, round(self.test_share * len(pairs)))
        if len(pairs) < 2:
            raise MissingError(f"{self.root / IMAGES} holds one image; two are needed, one of them to test by")
        drawn = np.argsort(
            mix32(np.arange(len(pairs), dtype=np.uint32) ^ mix32(np.array([self.seed], dtype=np.uint32)))
        )
        held_out = set(drawn[:count].tolist())
        warn_once(
            f"{self.root} has no train/ and val/: {count} of its {len(pairs)} images test, drawn by dataset.seed="
            f"{self.seed} (dataset.test_share={self.test_share:g})"
        )
        parts = {"train": [i for i in range(len(pairs)) if i not in held_out], "test": sorted(held_out)}
        return {split: [pairs[i] for i in rows] for split, rows in parts.items()}

    def encoded(self, split: str, index: int) -> Path:
        return self.pairs[split][index][0]

    def encoded_images(self, split: str) -> Iterator[Path]:
        return (image for image, _ in self.pairs[split])

    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        """The names in the file `class_list`; None without it."""
        if self.class_list is None:
            return None
        places = (Path(self.class_list).expanduser(), self.root / self.class_list)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise MissingError(f"dataset.class_list={self.class_list} does not exist")
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not 2 <= len(names) <= MOST + 1 or len(set(names)) < len(names):
            raise ConfigError(f"{path} must name 2 to {MOST + 1} classes, a line each, each once (it has {len(names)})")
        return names

    # ------------------------------------------------------------------------------------------ the contract

    def full_count(self, split: str) -> int:
        return len(self.pairs[split])

    def labels(self, split: str) -> None:
        return None

    def identity_of_images(self) -> dict[str, Any]:
        files = {
            split: [listed(path, self.root) for pair in some for path in pair] for split, some in self.pairs.items()
        }
        masks = {"ignore_label": self.ignore_label, "class_list": self.classes}
        return {"dataset": self.kind, "listing": fingerprint(files), **masks, **self.sizes}

    def masks(self, split: str, indices: Array) -> Array:
        """Class numbers (n, S, S) uint8, cut and resized as the images are; 255 is ignored.

        Raises:
            MissingError: a mask that cannot be used, with what is wrong with it.
        """
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = np.stack([*pool.map(lambda i: self.mask(split, int(i)), indices)])
        if split == "train":
            self.highest = max(self.highest, highest_class(found))
        return found

    def mask(self, split: str, index: int) -> Array:
        """(S, S) uint8 of one image."""
        image, path = self.pairs[split][index]
        numbers = read_mask(path)
        if (size := upright_size(image)) != numbers.shape[::-1]:
            seen = f"{numbers.shape[1]}x{numbers.shape[0]}"
            raise MissingError(
                f"{path} is {seen} pixels and its image {image} is {size[0]}x{size[1]}: save it "
                f"in the size of its image, by nearest neighbour"
            )
        self.check_numbers(split, path, numbers)
        kept = np.where(numbers == self.ignore_label, 255, numbers) if self.ignore_label is not None else numbers
        side = self.image_size
        picture = Image.fromarray(kept.astype(np.uint8))
        return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.NEAREST) if side else picture)

    def check_numbers(self, split: str, path: Path, numbers: Array) -> None:
        """Raises MissingError where a mask has a number that is no class."""
        limit = len(self.classes) - 1 if self.classes else MOST
        why = f"classes go from 0 to {limit}"
        if not self.classes and split == "test" and self.highest >= 0:
            limit, why = self.highest, f"the train masks have 0 to {self.highest}"
        wrong = [int(n) for n in np.unique(numbers) if n > limit and n != self.ignore_label]
        if wrong:
            besides = "" if self.ignore_label is None else f", and {self.ignore_label} for what does not count"
            raise MissingError(
                f"{path} has the label {wrong[0]}; {why}{besides}. Correct the mask, or say the number that does not "
                f"count as dataset.ignore_label={wrong[0]}"
            )


class Voc(Segmentation):
    """Pascal VOC 2012 segmentation: 1,464 train and 1,449 val images, 20 classes and the background; by torchvision."""

    kind = "voc"

    def __init__(self, root: str, download: bool, **options: Any) -> None:
        super().__init__(root, **options)
        self.download = download

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]
        return VOC_CLASSES.split()

    def fetch(self) -> None:
        """Get it if it is not there."""
        from rela_cli.data.files.downloads import open_torchvision

        expected = "the folder VOCdevkit/VOC2012"
        open_torchvision("VOCSegmentation", "Pascal VOC 2012", expected, str(self.root), self.download, year="2012")

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """The files that torchvision's class lists, in its order."""
        folder = self.root / "VOCdevkit" / "VOC2012"
        lists = {split: folder / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")}
        if not all(path.is_file() for path in lists.values()):
            self.fetch()
        names = {split: path.read_text(encoding="utf-8").split() for split, path in lists.items()}
        found = {
            split: [
                (folder / "JPEGImages" / f"{n}.jpg", folder / "SegmentationClass" / f"{n}.png") for n in names[split]
            ]
            for split in names
        }
        check_there([pair for some in found.values() for pair in some], folder)
        return {"train": found["train"], "test": found["val"]}


# --------------------------------------------------------------------------------------------------------- files


def pairs_in(folder: Path) -> list[Pair]:
    """Each image of folder/images with the mask of its name in folder/masks, sorted; at any depth.

    Raises:
        MissingError: no images, or an image without a mask.
    """
    images, masks = folder / IMAGES, folder / MASKS
    inside = sorted(path for path in images.rglob("*") if path.name[0] != "." and is_image(path.name))
    if not inside:
        raise MissingError(f"no images in {images}")
    pairs = [(path, (masks / path.relative_to(images)).with_suffix(".png")) for path in inside]
    check_there(pairs, masks)
    wanted = {mask for _, mask in pairs}
    if spare := [path for path in masks.rglob("*.png") if path.name[0] != "." and path not in wanted]:
        warn_once(f"not used in {masks}: {plural(len(spare), 'mask')} without an image, such as {min(spare).name}")
    return pairs


def check_there(pairs: Sequence[Pair], folder: Path) -> None:
    """Raises MissingError where an image or a mask is not there."""
    missing = [(image, mask) for image, mask in pairs if not mask.is_file()]
    if missing:
        image, mask = missing[0]
        raise MissingError(
            f"{image} has no mask: {mask} is not there ({len(missing)} of {len(pairs)} images have none). "
            f"Put it there, or take the image out"
        )
    if gone := [image for image, _ in pairs if not image.is_file()]:
        raise MissingError(f"{gone[0]} is not there ({len(gone)} of the {len(pairs)} images that {folder} names)")


def read_mask(path: Path) -> Array:
    """(H, W) class numbers as they are in the file.

    Raises:
        MissingError: it cannot be read, or holds colours rather than numbers.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            numbers = np.asarray(picture)
    except Exception as error:  # decoders raise whatever they like
        raise MissingError(f"the mask {path} cannot be read: {decoder_message(error)}") from error
    if numbers.ndim != 2 or mode == "F":
        raise MissingError(f"the mask {path} is {mode}, which holds colours and no class numbers: {ADVICE}")
    return numbers.astype(np.int64)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is shown; only its head is read."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            return (height, width) if orientation(picture) in (5, 6, 7, 8) else (width, height)
    except OSError as error:
        raise MissingError(f"{path} cannot be read as an image: {decoder_message(error)}") from error


def highest_class(masks: Array) -> int:
    """The largest class number in (n, S, S) masks; -1 where all pixels are to be ignored."""
    kept = masks[masks != 255]
    return int(kept.max()) if len(kept) else -1
