"""Folders of images: yours, and Tiny-ImageNet as its archive unpacks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import decode_all, is_image
from rela_cli.data.decoding.undecodable import Broken, left_out, named_few, say_once, tell
from rela_cli.data.encoded import Encoded
from rela_cli.data.files.entries import OTHER, folders_in, told
from rela_cli.data.files.index import Index, Paths, list_images
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import file_sha256

TRAIN = ("train", "training")  # names of the folder, in capitals too; the first that is there
HELD_OUT = ("test", "testing", "val", "valid", "validation")
SORT_THEM = "for numbers sort the images into train/<class>/* and test/<class>/*"
NONE = Paths(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64))


class ImageFolder(Encoded):
    """A folder of images: train/<class>/* beside test/, val/, valid/ or validation/, or <class>/*, or just files.

    Images beside class folders do not count, unless most images lie there: then there are no classes.

    Raises:
        ConfigError: no root given. MissingError: no such folder, or nothing in it that looks like an image.
    """

    kind = "image_folder"
    only: list[str] | None = None  # the classes that count; None for all that have a folder
    dropped: frozenset[str] | set[str] = frozenset()  # classes without a train image, under on_error=skip

    def __init__(
        self,
        root: str | None,
        image_size: int | None,
        decode_size: int | None = None,
        on_disk: bool | None = None,
        on_error: str = "raise",
        max_errors: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(image_size, decode_size, on_disk, **common)
        if not root:
            raise ConfigError(f"dataset={self.kind} needs dataset.root=FOLDER")
        self.root = Path(root).expanduser()
        self.on_error, self.max_errors = on_error, max_errors
        if not os.path.isdir(self.root):
            raise MissingError(f"dataset.root={root} is not a folder (looked at {os.path.realpath(self.root)})")
        self.find_folders()
        self.read_classes()

    def find_folders(self) -> None:
        """Where train and test images are."""
        there = {name.lower(): self.root / name for name in folders_in(self.root)}
        self.train_folder = next((there[name] for name in TRAIN if name in there), self.root)
        held_out = [there[name] for name in HELD_OUT if name in there]
        self.test_folder = held_out[0] if held_out and self.train_folder != self.root else None

    def read_classes(self) -> None:
        """Classes are the folders of train/, unless most images lie beside them."""
        names = folders_in(self.train_folder)
        flat = not names or mostly_loose(self.train_folder, names)
        self.classes = None if flat else names
        if flat:
            self.why_unprobed = f"{self.train_folder} has no class folders; {SORT_THEM}"
        elif self.test_folder is None:
            self.why_unprobed = f"{self.root} has no train/ with a test/ or val/ beside it; {SORT_THEM}"
        elif strange := sorted(set(folders_in(self.test_folder)) - set(names)):
            raise MissingError(f"{self.test_folder} has classes that train lacks: {', '.join(strange[:5])}")

    @property
    def unused(self) -> list[str]:
        """Folders of root beside those of train and test."""
        used = (self.train_folder, self.test_folder if self.classes else None)
        beside = [] if self.train_folder == self.root else folders_in(self.root)
        return [name for name in beside if self.root / name not in used]

    # -------------------------------------------------------------------------------------------- files

    def folders(self) -> dict[str, Path]:
        """The folder of each split that counts."""
        there = {"train": self.train_folder, "test": self.test_folder if self.classes else None}
        return {split: folder for split, folder in there.items() if folder}

    def index(self, afresh: bool = False) -> Index:
        """What lies in the folders, from an earlier start's notes where nothing has changed."""
        tops = {split: relative(folder, self.root) for split, folder in self.folders().items()}
        with_classes = [top for split, top in tops.items() if self.has_class_folders(split)]
        return list_images(self.root, list(tops.values()), self.only, self.cache, afresh, with_classes)

    def has_class_folders(self, split: str) -> bool:
        """Whether the images of a split lie in folders that say their class; then those beside them do not count."""
        return self.classes is not None

    @cached_property
    def listed(self) -> Index:
        """The index that this run goes by; what it leaves out is said once.

        Raises:
            MissingError: no train images, a class folder without any, or something that cannot be an image.
        """
        index = self.index()
        if left := self.left_out(index):
            say_once(f"not used in {self.root}: {left}")
        self.refuse_odd(index)
        if not index.lists[0]:
            others = told(index.left())
            raise MissingError(f"no images in {self.train_folder}" + (f", only {others}" if others else ""))
        if (empty := self.empty_classes(index)) and self.on_error == "raise":
            raise MissingError(
                f"no images in {self.train_folder / empty[0]}: remove the folder or fill it; dataset.on_error=skip "
                f"leaves out classes without images ({len(empty)} here)"
            )
        if empty:
            say_once(f"classes without an image are left out: {named_few(empty)}")
            self.classes = [name for name in self.classes or () if name not in empty]
            self.dropped = set(empty)
        if self.why_unprobed is None and not index.lists[-1]:
            self.why_unprobed = f"no images in {self.test_folder}; {SORT_THEM}"
        return index

    def left_out(self, index: Index) -> str:
        """What lies there and does not count, in words."""
        beside = f"the folders {named_few(self.unused)}" if self.unused else ""
        return "; ".join(filter(None, (told(index.left()), beside)))

    def odd(self, index: Index) -> Broken:
        """What cannot be an image, and why, of each split."""
        found = {split: index.odd.get(relative(folder, self.root), {}) for split, folder in self.folders().items()}
        return {split: odd for split, odd in found.items() if odd}

    def refuse_odd(self, index: Index) -> None:
        """Stop at what cannot be an image, or may not be looked at, unless it is to be skipped.

        Raises:
            MissingError: there is something of that kind.
        """
        odd = self.told_odd(index)
        if odd and self.on_error == "raise":
            way_out = f"say dataset.on_error=skip to leave out what is no image ({len(odd)} in all)"
            raise MissingError(f"{named_few(odd)}: remove it, or {way_out}")

    def told_odd(self, index: Index) -> list[str]:
        """What cannot be an image: a line each."""
        folders = self.folders()
        return [f"{folders[split] / name} {why}" for split, odd in self.odd(index).items() for name, why in odd.items()]

    def empty_classes(self, index: Index) -> list[str]:
        """Class folders of train without an image."""
        filled = index.filled(index.tops[0])
        return [name for name in self.classes or () if name not in filled]

    @cached_property
    def files(self) -> dict[str, Paths]:
        """The images of each split that count, as paths below its folder, sorted.

        Raises:
            MissingError: nothing is left of a class, or of train.
        """
        if not any(self.skipped.values()):
            return self.all_files
        kept = {split: self.without(paths, self.skipped.get(split, {})) for split, paths in self.all_files.items()}
        lost = set(self.class_names("train", self.all_files["train"])) - set(self.class_names("train", kept["train"]))
        if not kept["train"] or (self.classes and lost):
            where = self.train_folder / min(lost) if self.classes else self.train_folder
            raise MissingError(f"no image in {where} can be decoded")
        return kept

    def without(self, paths: Paths, skipped: Mapping[str, str]) -> Paths:
        """The paths that are not left out."""
        return paths.take(np.flatnonzero([path not in skipped for path in paths])) if skipped else paths

    @cached_property
    def skipped(self) -> Broken:  # type: ignore[override]
        if self.on_error == "raise":
            return {}
        named = {split: self.named(split) for split, paths in self.all_files.items() if paths}
        found, odd = left_out(named, self.listed.fingerprint, self.cache), self.odd(self.listed)
        found = {split: {**odd.get(split, {}), **found.get(split, {})} for split in {**found, **odd}}
        tell(found, self.max_errors)
        return found

    def named(self, split: str) -> Iterator[tuple[str, Path]]:
        """Every file of a split with the name that it is known by."""
        return ((path, self.folders()[split] / path) for path in self.all_files[split])

    @cached_property
    def all_files(self) -> dict[str, Paths]:
        """The same with those that cannot be decoded."""
        lists = dict(zip(self.folders(), self.listed.lists, strict=True))
        return {split: self.select(split, lists.get(split, NONE)) for split in self.splits}

    def select(self, split: str, files: Paths) -> Paths:
        """Which files of a split count: those of classes that train has images of."""
        if split == "train" or not self.dropped:
            return files
        return files.take(np.flatnonzero([name not in self.dropped for name in self.class_names(split, files)]))

    def class_names(self, split: str, files: Sequence[str]) -> Iterator[str]:
        """The class of each file: the first folder on its path."""
        return (path.partition("/")[0] for path in files)

    def encoded(self, split: str, index: int) -> Path:
        return self.folders()[split] / self.files[split][index]

    def images(self, split: str, indices: Array) -> Array:
        folder = self.folders()[split]  # text is joined, which costs a tenth of what Paths do
        return decode_all([f"{folder}/{path}" for path in self.files[split].take(indices)], self.decode_size)

    def sources(self, split: str) -> Iterator[Path]:
        return (self.folders()[split] / path for path in self.files[split])

    # ------------------------------------------------------------------------------------- the contract

    def full_count(self, split: str) -> int:
        return len(self.files[split])

    def source(self) -> dict[str, Any]:
        files: dict[str, Any] = {"count": self.listed.count(), "listing": self.listed.fingerprint}
        if skipped := {split: sorted(names) for split, names in self.skipped.items() if names}:
            files["skipped"] = skipped
        return {"dataset": "image_folder", **files, **self.sizes}

    def labels(self, split: str) -> Array | None:
        if self.classes is None or split not in self.folders():
            return None
        number = {name: i for i, name in enumerate(self.classes)}
        names = self.class_names(split, self.files[split])
        return np.fromiter((number[name] for name in names), dtype=np.int64, count=len(self.files[split]))


class TinyImagenet(ImageFolder):
    """Tiny-ImageNet: train/<class>/images/*, and val/images/* with val_annotations.txt; or val sorted into classes."""

    kind = "tiny_imagenet"
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"

    def __init__(self, root: str, download: bool, **options: Any) -> None:
        place = Path(root).expanduser()
        inner = place / "tiny-imagenet-200"
        if not any(os.path.isdir(folder / "train") for folder in (place, inner)):
            self.get(place, download)
        super().__init__(root=str(inner if os.path.isdir(inner / "train") else place), **options)

    def get(self, root: Path, download: bool) -> None:
        """Fetch and unpack the official archive into `root`."""
        from rela_cli.data.files.downloads import fetch_archive

        way_out = f"put the unpacked folder tiny-imagenet-200 (with train/ and val/) there; it comes from {self.url}"
        if not download:
            raise MissingError(f"Tiny-ImageNet is not in dataset.root={root}: {way_out}, or say dataset.download=true")
        fetch_archive("Tiny-ImageNet", self.url, root / "tiny-imagenet-200", self.md5, way_out)

    def find_folders(self) -> None:
        self.train_folder, self.test_folder = self.root / "train", self.root / "val"
        self.notes = self.test_folder / "val_annotations.txt"
        if not os.path.isdir(self.test_folder):
            raise MissingError(f"{self.root} has train/ but no val/; unpack tiny-imagenet-200.zip again")

    def read_classes(self) -> None:
        self.classes = folders_in(self.train_folder)

    @property
    def unused(self) -> list[str]:
        """Nothing that anybody would miss: the official test images have no labels."""
        return []

    def left_out(self, index: Index) -> str:
        """Without the boxes and notes that the archive has beside its images."""
        return told({why: names for why, names in index.left().items() if why != OTHER})

    @cached_property
    def annotations(self) -> dict[str, str]:
        """Class of each val file by its name; empty where val is sorted into class folders."""
        if not (self.test_folder and (self.test_folder / "images").is_dir()):
            return {}
        if not self.notes.is_file():
            raise MissingError(f"{self.notes} does not exist; it says the class of each image in val/images")
        rows = (line.split("\t") for line in self.notes.read_text(encoding="utf-8").splitlines() if line.strip())
        return {row[0]: row[1] for row in rows}

    def class_names(self, split: str, files: Sequence[str]) -> Iterator[str]:
        if split == "train" or not self.annotations:
            return super().class_names(split, files)
        try:
            return iter([self.annotations[os.path.basename(path)] for path in files])
        except KeyError as error:
            raise MissingError(f"{self.notes} does not say the class of {error.args[0]}") from error

    def source(self) -> dict[str, Any]:
        notes = {"annotations": file_sha256(self.notes)} if self.annotations else {}
        return {**super().source(), "dataset": self.kind, **notes}


def mostly_loose(folder: Path, names: Sequence[str]) -> bool:
    """Whether at least as many images lie right in a folder as in the folders `names` there."""
    loose = sum(1 for entry in os.scandir(folder) if entry.name[0] != "." and is_image(entry.name))
    inside = (name for top in names for _, _, files in os.walk(folder / top) for name in files if name[0] != ".")
    return loose > 0 and sum(1 for _ in islice(filter(is_image, inside), loose + 1)) <= loose  # it looks no further


def relative(folder: Path, root: Path) -> str:
    """`folder` below `root`, with slashes; empty for `root` itself."""
    return "" if folder == root else folder.relative_to(root).as_posix()
