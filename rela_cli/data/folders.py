"""Folders of images: yours, and Tiny-ImageNet as its archive unpacks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.artifacts import file_sha256
from rela_cli.data.broken import Broken, left_out
from rela_cli.data.datasets import Array
from rela_cli.data.encoded import Encoded
from rela_cli.data.images import SUFFIXES, decode_all
from rela_cli.data.index import Index, Paths, list_images
from rela_cli.errors import ConfigError, MissingError

NONE = Paths(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64))


class ImageFolder(Encoded):
    """A folder of images: train/<class>/* beside test/ or val/, or <class>/*, or just files.

    Raises:
        ConfigError: no root given. MissingError: no such folder, or nothing in it that looks like an image.
    """

    kind = "image_folder"
    only: list[str] | None = None  # the classes that count; None for all that have a folder

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
        if not self.root.is_dir():
            raise MissingError(f"dataset.root={root} is not a folder (looked at {self.root.resolve()})")
        self.find_folders()
        self.read_classes()

    def find_folders(self) -> None:
        """Where train and test images are."""
        self.train_folder = self.root / "train" if (self.root / "train").is_dir() else self.root
        held_out = [self.root / name for name in ("test", "val") if (self.root / name).is_dir()]
        self.test_folder = held_out[0] if held_out and self.train_folder != self.root else None

    def read_classes(self) -> None:
        """Classes are the folders of train/; loose files mean that there are none."""
        names = folders_in(self.train_folder)
        flat = not names or any(Path(entry.name).suffix.lower() in SUFFIXES for entry in os.scandir(self.train_folder))
        self.classes = None if flat else names
        if flat:
            self.why_unprobed = f"{self.train_folder} has no class folders"
        elif self.test_folder is None:
            self.why_unprobed = f"{self.root} has no train/ with a test/ or val/ beside it"
        elif strange := sorted(set(folders_in(self.test_folder)) - set(names)):
            raise MissingError(f"{self.test_folder} has classes that train lacks: {', '.join(strange[:5])}")

    # -------------------------------------------------------------------------------------------- files

    def folders(self) -> dict[str, Path]:
        """The folder of each split that counts."""
        there = {"train": self.train_folder, "test": self.test_folder if self.classes else None}
        return {split: folder for split, folder in there.items() if folder}

    def index(self, afresh: bool = False) -> Index:
        """What lies in the folders, from an earlier start's notes where nothing has changed."""
        tops = [relative(folder, self.root) for folder in self.folders().values()]
        return list_images(self.root, tops, self.only, self.cache, afresh)

    @cached_property
    def listed(self) -> Index:
        """The index that this run goes by.

        Raises:
            MissingError: no train images, or a class folder without any.
        """
        index = self.index()
        if not index.lists[0]:
            raise MissingError(f"no images in {self.train_folder} (looked for {', '.join(sorted(SUFFIXES))})")
        if empty := self.empty_classes(index):
            raise MissingError(f"no images in {self.train_folder / empty[0]}: remove the folder or fill it")
        return index

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
        return left_out(named, self.listed.fingerprint, self.max_errors, self.cache)

    def named(self, split: str) -> Iterator[tuple[str, Path]]:
        """Every file of a split with the name that it is known by."""
        return ((path, self.folders()[split] / path) for path in self.all_files[split])

    @cached_property
    def all_files(self) -> dict[str, Paths]:
        """The same with those that cannot be decoded."""
        lists = dict(zip(self.folders(), self.listed.lists, strict=True))
        return {split: self.select(split, lists.get(split, NONE)) for split in self.splits}

    def select(self, split: str, files: Paths) -> Paths:
        """Which files of a split count: all of them here."""
        return files

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
        if not any((folder / "train").is_dir() for folder in (place, inner)):
            self.get(place, download)
        super().__init__(root=str(inner if (inner / "train").is_dir() else place), **options)

    def get(self, root: Path, download: bool) -> None:
        """Fetch and unpack the official archive into `root`."""
        from rela_cli.data.vision import fetch_archive

        way_out = f"put the unpacked folder tiny-imagenet-200 (with train/ and val/) there; it comes from {self.url}"
        if not download:
            raise MissingError(f"Tiny-ImageNet is not in dataset.root={root}: {way_out}, or say dataset.download=true")
        fetch_archive("Tiny-ImageNet", self.url, root, self.md5, way_out)

    def find_folders(self) -> None:
        self.train_folder, self.test_folder = self.root / "train", self.root / "val"
        self.notes = self.test_folder / "val_annotations.txt"
        if not self.test_folder.is_dir():
            raise MissingError(f"{self.root} has train/ but no val/; unpack tiny-imagenet-200.zip again")

    def read_classes(self) -> None:
        self.classes = folders_in(self.train_folder)

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


def folders_in(folder: Path) -> list[str]:
    """Names of the folders right in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def relative(folder: Path, root: Path) -> str:
    """`folder` below `root`, with slashes; empty for `root` itself."""
    return "" if folder == root else folder.relative_to(root).as_posix()
