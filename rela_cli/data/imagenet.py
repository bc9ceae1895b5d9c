"""ImageNet-1K in the layouts that people have, and ImageNet-100, a part of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.files.archives import complete, unpack, unpack_one
from rela_cli.data.files.entries import folders_in
from rela_cli.data.files.index import Paths
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import file_sha256

KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
TRAIN_TAR, VAL_TAR, DEVKIT_TAR = (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    "ILSVRC2012_devkit_t12.tar.gz",
)
COMMANDS = f"""\
  mkdir train val && tar -xf {VAL_TAR} -C val && tar -xzf {DEVKIT_TAR} && tar -xf {TRAIN_TAR} -C train
  cd train && for f in *.tar; do mkdir "${{f%.tar}}" && tar -xf "$f" -C "${{f%.tar}}" && rm "$f"; done"""
LAYOUTS = f"""\
expected there: train/<class>/* with val/<class>/*; or with val/* and one of LOC_val_solution.csv, val_labels.txt
(lines 'file class') and {DEVKIT.parent}; or Kaggle's {KAGGLE}/train and val with LOC_val_solution.csv beside ILSVRC"""


class Imagenet1k(ImageFolder):
    """ImageNet-1K: class folders, Kaggle's layout, or what the ILSVRC archives unpack to; `unpack` unpacks them.

    Classes are the WordNet ids that have a folder in train/, or those of them that the file `class_list` names.
    """

    kind = "imagenet1k"
    roomy = True

    def __init__(self, root: str | None, unpack: bool, class_list: str | None, **options: Any) -> None:
        self.class_list = Path(class_list).expanduser() if class_list else None
        if root and unpack:
            unpack_archives(Path(root).expanduser())
        super().__init__(root=root, **options)

    def find_folders(self) -> None:
        base = next((b for b in (self.root, self.root / KAGGLE) if (b / "train").is_dir()), None)
        if base is None:
            raise MissingError(f"{self.kind} is not in dataset.root={self.root}; {LAYOUTS}{self.advice()}")
        self.train_folder, val = base / "train", base / "val"
        self.test_folder = val if val.is_dir() else None

    def advice(self) -> str:
        """How to unpack the archives, where they lie in root."""
        if not (self.root / TRAIN_TAR).is_file():
            return ""
        return f". The archives are there; say dataset.unpack=true, or in {self.root}:\n{COMMANDS}"

    def read_classes(self) -> None:
        self.classes = folders_in(self.train_folder)
        if self.class_list:
            self.only = read_class_list(self.class_list)
            if missing := sorted(set(self.only) - set(self.classes)):
                raise MissingError(
                    f"{self.train_folder} lacks {len(missing)} of the {len(self.only)} classes of {self.class_list}: "
                    f"{', '.join(missing[:5])}" + (", ..." if len(missing) > 5 else "")
                )
            self.classes = sorted(self.only)
        if not self.classes:
            raise MissingError(f"{self.train_folder} has no class folders; {LAYOUTS}")
        if self.test_folder is None:
            self.why_unprobed = f"{self.train_folder.parent} has no val/ beside train/; put it there for numbers"

    @property
    def unused(self) -> list[str]:
        """Nothing: beside train and val lie the archives' own files."""
        return []

    # ------------------------------------------------------------------------------- val without folders

    @cached_property
    def flat(self) -> bool:
        """Whether the val images lie in one folder, so that their classes stand in a file."""
        return self.test_folder is not None and not folders_in(self.test_folder)

    def has_class_folders(self, split: str) -> bool:
        return split == "train" or not self.flat

    @cached_property
    def answers(self) -> tuple[Path, Callable[[Path], dict[str, str]]]:
        """The file that says the classes of val, and how to read it.

        Raises:
            MissingError: there is none.
        """
        known: list[tuple[Path, Callable[[Path], dict[str, str]]]] = [
            (self.root / "LOC_val_solution.csv", read_kaggle),
            (self.root / "val_labels.txt", read_pairs),
            (self.root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt", read_devkit),
        ]
        for path, read in known:
            if path.is_file():
                return path, read
        names = ", ".join(str(path) for path, _ in known)
        raise MissingError(f"{self.test_folder} has no class folders, and nothing says its classes: no {names}")

    @cached_property
    def val_classes(self) -> dict[str, str]:
        """Class of each val image by its name, without the suffix."""
        path, read = self.answers
        return read(path)

    def class_names(self, split: str, files: Sequence[str]) -> Iterator[str]:
        if split == "train" or not self.flat:
            return super().class_names(split, files)
        return (self.val_class(path) for path in files)

    def val_class(self, path: str) -> str:
        name = os.path.splitext(os.path.basename(path))[0]
        if name not in self.val_classes:
            raise MissingError(f"{self.answers[0]} does not say the class of {path}")
        return self.val_classes[name]

    def select(self, split: str, files: Paths) -> Paths:
        if split == "train" or not self.flat:
            return super().select(split, files)
        names, wanted = list(self.class_names(split, files)), set(self.classes or ())
        if not self.class_list and (strange := sorted(set(names) - wanted)):
            raise MissingError(f"{self.answers[0]} has classes that train lacks: {', '.join(strange[:5])}")
        return files.take(np.flatnonzero([name in wanted for name in names]))

    def source(self) -> dict[str, Any]:
        labels = {"answers": file_sha256(self.answers[0])} if self.flat else {}
        part = {"classes": self.classes} if self.class_list else {}
        return {**super().source(), "dataset": "imagenet1k", **labels, **part}


class Imagenet100(Imagenet1k):
    """The usual 100 classes of ImageNet-1K, or those of another list."""

    kind = "imagenet100"

    def __init__(self, class_list: str | None, **options: Any) -> None:
        usual = str(Path(__file__).parent / "imagenet100.txt")
        super().__init__(class_list=class_list or usual, **options)


def read_class_list(path: Path) -> list[str]:
    """The first word of each line; lines that start with # are comments."""
    if not path.is_file():
        raise MissingError(f"dataset.class_list={path} does not exist")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if len(set(names)) < max(2, len(names)):
        raise ConfigError(f"dataset.class_list={path} must name at least two classes, each once")
    return names


def read_kaggle(path: Path) -> dict[str, str]:
    """LOC_val_solution.csv: ImageId, and a prediction that starts with the class."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}


def read_pairs(path: Path) -> dict[str, str]:
    """Lines of a file name and its class."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {os.path.splitext(row[0])[0]: row[1] for row in rows}


def read_devkit(path: Path) -> dict[str, str]:
    """Line i is the number of image i's class; meta.mat beside it gives the classes of the numbers."""
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(path.with_name("meta.mat"), squeeze_me=True)["synsets"])
    names = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    numbers = path.read_text(encoding="utf-8").split()
    return {f"ILSVRC2012_val_{i:08d}": names[int(number)] for i, number in enumerate(numbers, start=1)}


def unpack_archives(root: Path) -> None:
    """Unpack the ILSVRC archives in `root` where train/ or val/ is not there yet; each appears only when complete.

    Raises:
        MissingError: an archive is not there, or not the official one.
    """
    if not os.path.isdir(root / "train") and not (root / TRAIN_TAR).is_file():
        raise MissingError(f"dataset.root={root} cannot be unpacked: The archive {TRAIN_TAR} is not present")
    try:
        complete(root / "train", lambda part: unpack_train(root / TRAIN_TAR, part))
        complete(root / "val", lambda part: unpack(root / VAL_TAR, part))
        if (root / DEVKIT_TAR).is_file():
            unpack_one(root / DEVKIT_TAR, root / DEVKIT.parent)
    except OSError as error:
        raise MissingError(f"the ILSVRC archives in dataset.root={root} cannot be unpacked: {error}") from error


def unpack_train(archive: Path, folder: Path) -> None:
    """The train archive holds one archive a class; each becomes a folder of that name.

    Raises:
        OSError: it is not the official one.
    """
    from torchvision.datasets.imagenet import ARCHIVE_META
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(str(archive), ARCHIVE_META["train"][1]):
        raise OSError(f"The archive {TRAIN_TAR} is not the official one by its md5")
    unpack(archive, folder)
    for inner in sorted(folder.glob("*.tar")):
        unpack(inner, inner.with_suffix(""))
        inner.unlink()
