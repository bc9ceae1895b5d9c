"""Folders of images: yours, and Tiny-ImageNet as its archive unpacks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import decode_all
from rela_cli.data.decoding.undecodable import Undecodable, left_out, say_once, warn_left_out
from rela_cli.data.encoded import EncodedDataset
from rela_cli.data.files.entries import OTHER, left_out_text
from rela_cli.data.files.index import Index, PathTable, list_images
from rela_cli.data.layout import SORT_THEM, Layout, labelled_layout, plain_layout, tiny_imagenet_layout
from rela_cli.errors import MissingError
from rela_cli.terminal import few

NONE = PathTable(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64))


class ImageFolder(EncodedDataset):
    """A folder of images: train/<class>/* beside test/, val/, valid/ or validation/, or <class>/*, or just files.

    Images beside class folders do not count, unless most images lie there: then there are no classes. With a CSV file
    `labels` all images below the folder train, and those that it names are divided into `labelled` and `test`.

    Raises:
        ConfigError: no root given. MissingError: no such folder, or nothing in it that looks like an image.
    """

    kind = "image_folder"
    dropped: frozenset[str] = frozenset()  # classes without a train image, under on_error=skip

    def __init__(
        self,
        root: str | None,
        on_error: str = "raise",
        max_errors: int = 0,
        labels: str | None = None,
        test_share: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(self.needed(root)).expanduser()
        self.on_error, self.max_errors = on_error, max_errors
        if not os.path.isdir(self.root):
            raise MissingError(f"dataset.root={root} is not a folder (looked at {os.path.realpath(self.root)})")
        self.label_path, self.test_share = labels, test_share
        self.layout = self.find_layout()
        self.splits = self.layout.splits
        self.classes, self.why_unprobed = self.layout.classes, self.layout.why_unprobed

    def find_layout(self) -> Layout:
        """Where train and test images lie, and what says their classes."""
        if not self.label_path:
            return plain_layout(self.root)
        return labelled_layout(self.root, self.label_path, self.test_share, self.seed, self.on_error == "skip")

    # -------------------------------------------------------------------------------------------- files

    def index(self, afresh: bool = False) -> Index:
        """What lies in the folders, from an earlier start's notes where nothing has changed."""
        layout = self.layout
        tops = [*dict.fromkeys(relative(folder, self.root) for folder in layout.folders.values())]
        sorted_tops = [relative(folder, self.root) for folder in layout.in_class_folders]
        only = layout.classes if layout.chosen else None
        return list_images(self.root, tops, only, self.cache, afresh, sorted_tops)

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
            others = left_out_text(index.left())
            raise MissingError(f"no images in {self.layout.train}" + (f", only {others}" if others else ""))
        self.classes = self.layout.classes_in(index.lists[0])
        if (empty := self.empty_classes(index)) and self.on_error == "raise":
            raise MissingError(
                f"no images in {self.layout.train / empty[0]}: remove the folder or fill it; dataset.on_error=skip "
                f"leaves out classes without images ({len(empty)} here)"
            )
        if empty:
            say_once(f"classes without an image are left out: {few(empty)}")
            self.classes = [name for name in self.classes or () if name not in empty]
            self.dropped = frozenset(empty)
        if self.why_unprobed is None and not index.lists[-1]:
            self.why_unprobed = f"no images in {self.layout.test}; {SORT_THEM}"
        return index

    def left_out(self, index: Index) -> str:
        """What lies there and does not count, in words."""
        found = {why: names for why, names in index.left().items() if why != OTHER or self.layout.tells_other_files}
        if self.layout.own_file in found.get(OTHER, ()):
            count, *names = found.pop(OTHER)
            rest = [count - 1, *(name for name in names if name != self.layout.own_file)]
            found |= {OTHER: rest} if rest[0] else {}
        beside = f"the folders {few(self.layout.unused)}" if self.layout.unused else ""
        return "; ".join(filter(None, (left_out_text(found), beside)))

    def odd(self, index: Index) -> Undecodable:
        """What cannot be an image, and why, of each split."""
        folders = {split: folder for split, folder in self.layout.folders.items() if self.layout.is_listed(split)}
        found = {split: index.odd.get(relative(folder, self.root), {}) for split, folder in folders.items()}
        return {split: odd for split, odd in found.items() if odd}

    def refuse_odd(self, index: Index) -> None:
        """Stop at what cannot be an image, or may not be looked at, unless it is to be skipped.

        Raises:
            MissingError: there is something of that kind.
        """
        odd = self.told_odd(index)
        if odd and self.on_error == "raise":
            way_out = f"say dataset.on_error=skip to leave out what is no image ({len(odd)} in all)"
            raise MissingError(f"{few(odd)}: remove it, or {way_out}")

    def told_odd(self, index: Index) -> list[str]:
        """What cannot be an image: a line each."""
        folders = self.layout.folders
        return [f"{folders[split] / name} {why}" for split, odd in self.odd(index).items() for name, why in odd.items()]

    def empty_classes(self, index: Index) -> list[str]:
        """Class folders of train without an image."""
        if not self.layout.in_class_folders:
            return []
        filled = index.filled(index.tops[0])
        return [name for name in self.classes or () if name not in filled]

    @cached_property
    def files(self) -> dict[str, PathTable]:
        """The images of each split that count, as paths below its folder, sorted.

        Raises:
            MissingError: nothing is left of a class, or of train.
        """
        if not any(self.skipped.values()):
            return self.all_files
        of = {split: split if self.layout.is_listed(split) else "train" for split in self.splits}
        kept = {split: self.without(paths, self.skipped.get(of[split], {})) for split, paths in self.all_files.items()}
        judged = self.layout.judged
        lost = set(self.layout.class_names(judged, self.all_files[judged])) - set(
            self.layout.class_names(judged, kept[judged])
        )
        if not kept["train"] or (self.classes and lost):
            where = self.layout.train / min(lost) if self.classes else self.layout.train
            raise MissingError(f"no image in {where} can be decoded")
        return kept

    def without(self, paths: PathTable, skipped: Mapping[str, str]) -> PathTable:
        """The paths that are not left out."""
        return paths.take(np.flatnonzero([path not in skipped for path in paths])) if skipped else paths

    @cached_property
    def skipped(self) -> Undecodable:  # type: ignore[override]
        if self.on_error == "raise":
            return {}
        named = {s: self.named(s) for s, paths in self.all_files.items() if paths and self.layout.is_listed(s)}
        found, odd = left_out(named, self.listed.fingerprint, self.cache), self.odd(self.listed)
        found = {split: {**odd.get(split, {}), **found.get(split, {})} for split in {**found, **odd}}
        warn_left_out(found, self.max_errors)
        return found

    def named(self, split: str) -> Iterator[tuple[str, Path]]:
        """Every file of a split with the name that it is known by."""
        return ((path, self.layout.folders[split] / path) for path in self.all_files[split])

    @cached_property
    def all_files(self) -> dict[str, PathTable]:
        """The images of each split, also those that cannot be decoded: paths below its folder, sorted."""
        lists = self.layout.divided(self.listed.lists)
        return {split: self.select(split, lists.get(split, NONE)) for split in self.splits}

    def select(self, split: str, files: PathTable) -> PathTable:
        """The test files of classes that count; all train files.

        Raises:
            MissingError: a file says that a test image is of a class that train lacks.
        """
        class_file = self.layout.class_file
        if split == "train" or not (self.dropped or class_file):
            return files
        names, counted = list(self.layout.class_names(split, files)), set(self.classes or ())
        strange = sorted(set(names) - counted - self.dropped)
        if class_file and strange and not self.layout.chosen:
            raise MissingError(f"{class_file.path} has classes that train lacks: {', '.join(strange[:5])}")
        return files.take(np.flatnonzero([name in counted for name in names]))

    def encoded(self, split: str, index: int) -> Path:
        return self.layout.folders[split] / self.files[split][index]

    def images(self, split: str, indices: Array) -> Array:
        folder = self.layout.folders[split]  # text is joined, which costs a tenth of what Paths do
        return decode_all([f"{folder}/{path}" for path in self.files[split].take(indices)], self.decode_size)

    def encoded_images(self, split: str) -> Iterator[Path]:
        return (self.layout.folders[split] / path for path in self.files[split])

    # ------------------------------------------------------------------------------------- the contract

    def full_count(self, split: str) -> int:
        return len(self.files[split])

    def identity_of_images(self) -> dict[str, Any]:
        files: dict[str, Any] = {"count": self.listed.count(), "listing": self.listed.fingerprint}
        if skipped := {split: sorted(names) for split, names in self.skipped.items() if names}:
            files["skipped"] = skipped
        return {"dataset": self.layout.dataset, **files, **self.sizes, **self.layout.identity}

    def labels(self, split: str) -> Array | None:
        if self.classes is None or not self.layout.has_labels(split):
            return None
        number = {name: i for i, name in enumerate(self.classes)}
        names = self.layout.class_names(split, self.files[split])
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

    def find_layout(self) -> Layout:
        return tiny_imagenet_layout(self.root)


def relative(folder: Path, root: Path) -> str:
    """`folder` below `root`, with slashes; empty for `root` itself."""
    return "" if folder == root else folder.relative_to(root).as_posix()
