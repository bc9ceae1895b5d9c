"""How a folder of images is laid out: where train and test images lie, and what says the class of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from rela_cli.data.decoding.images import is_image
from rela_cli.data.files.entries import folders_in
from rela_cli.data.files.index import PathTable
from rela_cli.data.label_file import SPLITS, LabelFile, read_label_file
from rela_cli.errors import MissingError
from rela_cli.store.files import file_sha256

TRAIN = ("train", "training")  # names of the train folder, in capitals too; the first that is there
HELD_OUT = ("test", "testing", "val", "valid", "validation")
SORT_THEM = "for numbers sort the images into train/<class>/* and test/<class>/*"


@dataclass(frozen=True)
class ClassFile:
    """A file that says the class of each test image; `read` gives name without suffix -> class."""

    path: Path
    read: Callable[[Path], dict[str, str]]
    key: str  # what the hash of the file is called in the dataset's identity

    @cached_property
    def class_of_name(self) -> dict[str, str]:
        """Class of each image by its name without the suffix."""
        return self.read(self.path)

    def classes_of(self, files: Iterable[str]) -> Iterator[str]:
        """The class of each file.

        Raises:
            MissingError: the file says nothing about an image.
        """
        for name in map(os.path.basename, files):
            stem = os.path.splitext(name)[0]
            if stem not in self.class_of_name:
                raise MissingError(f"{self.path} does not say the class of {name}")
            yield self.class_of_name[stem]


@dataclass(frozen=True)
class Layout:
    """Where the images of a dataset lie. The class of an image is its first folder, unless a file says it.

    Args:
        dataset: the name in the dataset's identity.
        train: folder of the train images.
        test: folder of the test images; None where there are none.
        classes: names of the classes, sorted; None where images have none, and test images then do not count.
        chosen: whether `classes` is a part of the classes that have a folder; the others are not read.
        class_file: says the classes of the test images, where these do not lie in class folders.
        flat_test: whether test images lie right in their folder.
        why_unprobed: why nothing can be probed; None where it can.
        unused: names of folders that hold images which do not count.
        tells_other_files: whether files that are no images are named in what is left out.
        splits: the splits that a dataset of this layout has.
        judged: the split that a probe is fitted on.
    """

    dataset: str
    train: Path
    test: Path | None
    classes: list[str] | None
    chosen: bool = False
    class_file: ClassFile | None = None
    flat_test: bool = False
    why_unprobed: str | None = None
    unused: tuple[str, ...] = ()
    tells_other_files: bool = True
    splits: tuple[str, ...] = ("train", "test")
    judged: str = "train"

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The folder of each split that counts."""
        found = {"train": self.train}
        return found | {"test": self.test} if self.test and self.classes is not None else found

    @property
    def own_file(self) -> str | None:
        """The name of a file among the images that says their classes; None where there is none."""
        return None

    def is_listed(self, split: str) -> bool:
        """Whether a split has files of its own, rather than some of train's."""
        return True

    def has_labels(self, split: str) -> bool:
        """Whether the classes of a split's images are known, where there are classes."""
        return split in self.folders

    def classes_in(self, paths: Sequence[str]) -> list[str] | None:
        """The classes of the train images `paths`.

        Raises:
            MissingError: what says the classes does not fit them.
        """
        return self.classes

    def divided(self, lists: Sequence[PathTable]) -> dict[str, PathTable]:
        """The files of each split, from the list of each folder."""
        return dict(zip(self.folders, lists, strict=True))

    @property
    def in_class_folders(self) -> list[Path]:
        """Folders whose images lie in class folders; images beside these do not count."""
        if self.classes is None:
            return []
        return [folder for split, folder in self.folders.items() if split == "train" or not self.flat_test]

    def class_names(self, split: str, files: Iterable[str]) -> Iterator[str]:
        """The class of each file of a split, given as paths below its folder.

        Raises:
            MissingError: the file of classes says nothing about an image.
        """
        if split == "test" and self.class_file:
            return self.class_file.classes_of(files)
        return (path.partition("/")[0] for path in files)

    @property
    def identity(self) -> dict[str, object]:
        """What the layout adds to the dataset's identity."""
        labels: dict[str, object] = {self.class_file.key: file_sha256(self.class_file.path)} if self.class_file else {}
        return {**labels, **({"classes": self.classes} if self.chosen else {})}


@dataclass(frozen=True, kw_only=True)
class LabelledLayout(Layout):
    """All images below a folder train; a file says the classes of some, which are the splits `labelled` and `test`."""

    label_file: LabelFile
    splits: tuple[str, ...] = ("train", *SPLITS)
    judged: str = "labelled"

    @cached_property
    def folders(self) -> dict[str, Path]:
        return dict.fromkeys(self.splits, self.train)

    @property
    def in_class_folders(self) -> list[Path]:
        return []

    @property
    def own_file(self) -> str:
        return self.label_file.path.name

    @property
    def identity(self) -> dict[str, object]:
        return self.label_file.identity

    def is_listed(self, split: str) -> bool:
        return split == "train"

    def has_labels(self, split: str) -> bool:
        return split in SPLITS

    def classes_in(self, paths: Sequence[str]) -> list[str]:
        return self.label_file.find(paths)

    def divided(self, lists: Sequence[PathTable]) -> dict[str, PathTable]:
        (paths,) = lists
        return {"train": paths, **{split: paths.take(self.label_file.parts[split]) for split in SPLITS}}

    def class_names(self, split: str, files: Iterable[str]) -> Iterator[str]:
        return (self.label_file.class_of[path] for path in files)


def plain_layout(root: Path) -> Layout:
    """train/<class>/* beside test/, val/, valid/ or validation/; or <class>/*; or files alone, which have no classes.

    Raises:
        MissingError: test has classes that train lacks.
    """
    there = {name.lower(): name for name in folders_in(root)}
    train = next((root / there[name] for name in TRAIN if name in there), root)
    held_out = [root / there[name] for name in HELD_OUT if name in there]
    test = held_out[0] if held_out and train != root else None
    names = folders_in(train)
    classes = None if not names or mostly_loose(train, names) else names
    used = (train, test if classes else None)
    unused = () if train == root else tuple(name for name in folders_in(root) if root / name not in used)
    why = None
    if classes is None:
        why = f"{train} has no class folders; {SORT_THEM}"
    elif test is None:
        why = f"{root} has no train/ with a test/ or val/ beside it; {SORT_THEM}"
    elif strange := sorted(set(folders_in(test)) - set(classes)):
        raise MissingError(f"{test} has classes that train lacks: {', '.join(strange[:5])}")
    return Layout("image_folder", train, test, classes, why_unprobed=why, unused=unused)


def labelled_layout(root: Path, labels: str, test_share: float, seed: int, skips: bool) -> Layout:
    """All images below a folder, and the file `labels`, which lies at that path from here on or from the folder on."""
    places = (Path(labels).expanduser(), root / labels)
    path = next((place for place in places if place.is_file()), places[0])
    label_file = read_label_file(path, test_share, seed, skips)
    return LabelledLayout("image_folder", root, None, label_file.classes, label_file=label_file)


def mostly_loose(folder: Path, names: Iterable[str]) -> bool:
    """Whether at least as many images lie right in a folder as in the folders `names` there."""
    loose = sum(1 for entry in os.scandir(folder) if entry.name[0] != "." and is_image(entry.name))
    inside = (name for top in names for _, _, files in os.walk(folder / top) for name in files if name[0] != ".")
    return loose > 0 and sum(1 for _ in islice(filter(is_image, inside), loose + 1)) <= loose  # it looks no further


def tiny_imagenet_layout(root: Path) -> Layout:
    """train/<class>/images/*, with val/images/* and val/val_annotations.txt or with val/<class>/*.

    Raises:
        MissingError: no val/, or nothing that says the classes of val/images.
    """
    train, val = root / "train", root / "val"
    if not os.path.isdir(val):
        raise MissingError(f"{root} has train/ but no val/; unpack tiny-imagenet-200.zip again")
    notes = None
    if (val / "images").is_dir():
        notes = ClassFile(val / "val_annotations.txt", read_annotations, "annotations")
        if not notes.path.is_file():
            raise MissingError(f"{notes.path} does not exist; it says the class of each image in val/images")
    return Layout("tiny_imagenet", train, val, folders_in(train), class_file=notes, tells_other_files=False)


def read_annotations(path: Path) -> dict[str, str]:
    """Lines of a file name, its class and a box, with tabs between them."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {os.path.splitext(row[0])[0]: row[1] for row in rows}
