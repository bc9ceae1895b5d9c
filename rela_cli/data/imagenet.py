"""ImageNet-1K in the layouts that people have, and ImageNet-100, a part of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.files.archives import fill_folder, unpack, unpack_one
from rela_cli.data.files.entries import folders_in
from rela_cli.data.folders import ImageFolder
from rela_cli.data.layout import ClassFile, Layout
from rela_cli.errors import ConfigError, MissingError

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
LAYOUT_HELP = f"""\
expected there: train/<class>/* with val/<class>/*; or with val/* and one of LOC_val_solution.csv, val_labels.txt
(lines 'file class') and {DEVKIT.parent}; or Kaggle's {KAGGLE}/train and val with LOC_val_solution.csv beside ILSVRC"""


class Imagenet1k(ImageFolder):
    """ImageNet-1K: class folders, Kaggle's layout, or what the ILSVRC archives unpack to; `unpack` unpacks them.

    Classes are the WordNet ids that have a folder in train/, or those of them that the file `class_list` names.
    """

    kind = "imagenet1k"
    decodes_larger = True

    def __init__(self, root: str | None, unpack: bool, class_list: str | None, **options: Any) -> None:
        self.class_list = Path(class_list).expanduser() if class_list else None
        if root and unpack:
            unpack_archives(Path(root).expanduser())
        super().__init__(root=root, **options)

    def find_layout(self) -> Layout:
        return imagenet_layout(self.root, self.class_list, self.kind)


class Imagenet100(Imagenet1k):
    """The usual 100 classes of ImageNet-1K, or those of another list."""

    kind = "imagenet100"

    def __init__(self, class_list: str | None, **options: Any) -> None:
        usual = str(Path(__file__).parent / "imagenet100.txt")
        super().__init__(class_list=class_list or usual, **options)


def imagenet_layout(root: Path, class_list: Path | None, name: str) -> Layout:
    """train/<class>/* beside val/, in `root` or where Kaggle's archive has them.

    Raises:
        MissingError: no train/, no class folders in it, classes of the list that it lacks, or unknown classes of val.
    """
    base = next((b for b in (root, root / KAGGLE) if (b / "train").is_dir()), None)
    if base is None:
        raise MissingError(f"{name} is not in dataset.root={root}; {LAYOUT_HELP}{advice(root)}")
    train, val = base / "train", base / "val"
    classes = folders_in(train)
    if class_list:
        classes = chosen_classes(train, classes, class_list)
    if not classes:
        raise MissingError(f"{train} has no class folders; {LAYOUT_HELP}")
    if not val.is_dir():
        why = f"{base} has no val/ beside train/; put it there for numbers"
        return Layout("imagenet1k", train, None, classes, bool(class_list), why_unprobed=why)
    flat = not folders_in(val)
    answers = val_classes(root, val) if flat else None
    return Layout("imagenet1k", train, val, classes, bool(class_list), answers, flat)


def advice(root: Path) -> str:
    """How to unpack the archives, where they lie in root."""
    if not (root / TRAIN_TAR).is_file():
        return ""
    return f". The archives are there; say dataset.unpack=true, or in {root}:\n{COMMANDS}"


def chosen_classes(train: Path, there: Sequence[str], class_list: Path) -> list[str]:
    """The classes of a list, sorted.

    Raises:
        MissingError: train has no folder for one of them.
    """
    chosen = sorted(read_class_list(class_list))
    if missing := sorted(set(chosen) - set(there)):
        raise MissingError(
            f"{train} lacks {len(missing)} of the {len(chosen)} classes of {class_list}: "
            f"{', '.join(missing[:5])}" + (", ..." if len(missing) > 5 else "")
        )
    return chosen


def val_classes(root: Path, val: Path) -> ClassFile:
    """The file that says the classes of val's images.

    Raises:
        MissingError: there is none.
    """
    known: list[tuple[Path, Callable[[Path], dict[str, str]]]] = [
        (root / "LOC_val_solution.csv", read_kaggle),
        (root / "val_labels.txt", read_pairs),
        (root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt", read_devkit),
    ]
    for path, read in known:
        if path.is_file():
            return ClassFile(path, read, "answers")
    names = ", ".join(str(path) for path, _ in known)
    raise MissingError(f"{val} has no class folders, and nothing says its classes: no {names}")


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
        fill_folder(root / "train", lambda part: unpack_train(root / TRAIN_TAR, part))
        fill_folder(root / "val", lambda part: unpack(root / VAL_TAR, part))
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
