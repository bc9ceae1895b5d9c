"""A CSV file that says the class of some images in a folder: file name, class. All images train; these are probed with.

Files that it names and that are not there, rows without a class, and classes with too few images are named, and end the
run; under dataset.on_error=skip they are left out, which is said. An image with two classes always ends it.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import is_image
from rela_cli.data.decoding.undecodable import say_once
from rela_cli.errors import MissingError
from rela_cli.store.files import file_sha256
from rela_cli.terminal import few

SPLITS = ("labelled", "test")  # what the labelled images are divided into
# heads of columns
FILE_HEADS = ("file", "filename", "file_name", "image", "image_name", "image_id", "path", "name", "id")
CLASS_HEADS = ("class", "label", "category", "target", "class_name")
LEAST_OF_CLASS = 2  # images of a class: one to fit the probe, one to test it


@dataclass
class LabelFile:
    """The rows of a CSV file, and once `find` has seen the folder, the class and the split of each labelled image."""

    path: Path
    test_share: float
    seed: int
    skips: bool  # whether what is wrong is left out instead of ending the run
    rows: list[tuple[str, str]]  # name and class
    class_of: dict[str, str] = field(default_factory=dict)  # path below the folder -> class
    parts: dict[str, Array] = field(default_factory=dict)  # split -> rows of the folder's list, sorted

    @cached_property
    def classes(self) -> list[str]:
        """All classes that the file names, sorted."""
        return sorted({name for _, name in self.rows if name})

    @property
    def identity(self) -> dict[str, object]:
        """What it adds to a dataset's identity."""
        return {"labels": file_sha256(self.path), "test_share": self.test_share}

    def find(self, paths: Sequence[str]) -> list[str]:
        """Match names to files and divide them; the classes that are left.

        Raises:
            MissingError: something does not fit, and is not to be skipped; or no two classes are left.
        """
        wanted = self.wanted()
        found = rows_by_name(paths, wanted)
        missing = [name for name in wanted if name not in found]
        self.refuse(missing, "names files that are not there", "its paths start at dataset.root")
        counts = Counter(wanted[name] for name in found)
        few = [f"{name} ({counts[name]})" for name in self.classes if counts[name] < LEAST_OF_CLASS]
        self.refuse(few, f"has classes with fewer than {LEAST_OF_CLASS} images", "one fits the probe and one tests it")
        kept = {name: row for name, row in found.items() if counts[wanted[name]] >= LEAST_OF_CLASS}
        classes = sorted({wanted[name] for name in kept})
        if len(classes) < 2:
            raise MissingError(f"{self.path} labels images of {len(classes)} classes, and a probe needs two")
        self.class_of = {paths[row]: wanted[name] for name, row in kept.items()}
        self.parts = divided({row: wanted[name] for name, row in kept.items()}, self.test_share, self.seed)
        say_once(self.told(len(paths), len(classes)))
        return classes

    def wanted(self) -> dict[str, str]:
        """The class of each name; a name that stands twice is said, and counts once.

        Raises:
            MissingError: a name has two classes, or none.
        """
        empty = [name for name, kind in self.rows if not kind]
        self.refuse(empty, "has rows without a class", "write one, or remove them")
        rows = [(name, kind) for name, kind in self.rows if kind]
        if odd := [f"{name} ({a}, {b})" for name, a, b in twice(rows) if a != b]:
            raise MissingError(f"{self.path} gives two classes to {few(odd)}: leave one of them")
        if again := [*dict.fromkeys(name for name, _, _ in twice(rows))]:
            say_once(f"{self.path} names {count_and_names(again)} more than once, which count once")
        return dict(rows)

    def refuse(self, names: Sequence[str], what: str, why: str) -> None:
        """Say what is wrong with these names, and go on without them if that is wanted.

        Raises:
            MissingError: it is not.
        """
        if not names:
            return
        if not self.skips:
            raise MissingError(
                f"{self.path} {what}: {count_and_names(names)}; {why}. dataset.on_error=skip leaves out what is wrong"
            )
        say_once(f"{self.path} {what}, left out: {count_and_names(names)}")

    def told(self, images: int, classes: int) -> str:
        """How the images are divided."""
        fit, test = (len(self.parts[split]) for split in SPLITS)
        return (
            f"{self.path}: {fit + test:,} of {images:,} images have labels, {classes} classes: {fit:,} fit the probe, "
            f"{test:,} test it (stratified, dataset.seed={self.seed}); all {images:,} train, without labels"
        )


def read_label_file(path: Path, test_share: float, seed: int, skips: bool) -> LabelFile:
    """The rows of a file.

    Raises:
        MissingError: no such file, or none that can be read as CSV with two columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise MissingError(f"dataset.labels={path} cannot be read: {reason} (looked at {path.absolute()})") from error
    lines = text.splitlines()
    delimiter = max(",;\t", key=(lines[0] if lines else "").count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter) if any(row)]
    if short := next((n for n, row in enumerate(rows, start=1) if len(row) < 2), 0):
        raise MissingError(f"{path}, row {short}: two columns are wanted, file name and class, and it has one")
    if not rows:
        raise MissingError(f"{path} is empty: a row for each labelled image is wanted, file name and class")
    file, kind, first = name_and_class_columns(path, rows)
    pairs = [(slashed(row[file]), row[kind] if kind < len(row) else "") for row in rows[first:]]
    return LabelFile(path, test_share, seed, skips, pairs)


def name_and_class_columns(path: Path, rows: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """Which columns hold the name and the class, and the first row of data; said where there are more than two."""
    head = [cell.lower() for cell in rows[0]]
    file, kind = (next((head.index(n) for n in names if n in head), -1) for names in (FILE_HEADS, CLASS_HEADS))
    has_head = file >= 0 or kind >= 0 or (not is_image(rows[0][0]) and is_image(rows[-1][0]))
    if file < 0 or kind < 0 or file == kind:
        file, kind = 0, 1
    if len(head) > 2:
        shown = f"{rows[0][file]} and {rows[0][kind]}" if has_head else "the first two"
        say_once(f"{path} has {len(head)} columns; names and classes are taken from {shown}")
    return file, kind, int(has_head)


def slashed(name: str) -> str:
    """A path below the folder, as the folder's own list has it."""
    return name.replace("\\", "/").removeprefix("./")


def rows_by_name(paths: Iterable[str], names: Mapping[str, str]) -> dict[str, int]:
    """The row of each name in the folder's list: by the whole path, or by the path without its suffix.

    Raises:
        MissingError: a name without suffix fits several files.
    """
    found: dict[str, int] = {}
    for row, path in enumerate(paths):
        stem = os.path.splitext(path)[0]
        name = path if path in names else stem if stem in names else None
        if name is not None and name in found:
            raise MissingError(f"{name} is the name of several files, {path} among them: write it with its suffix")
        if name is not None:
            found[name] = row
    return found


def divided(class_of_row: Mapping[int, str], test_share: float, seed: int) -> dict[str, Array]:
    """Sorted rows to fit on and to test on: of each class its share, and never fewer than one in either."""
    random = np.random.RandomState(seed)
    test: list[int] = []
    for name in sorted(set(class_of_row.values())):
        rows = sorted(row for row, kind in class_of_row.items() if kind == name)
        count = min(max(1, round(test_share * len(rows))), len(rows) - 1)
        test += [rows[i] for i in random.permutation(len(rows))[:count]]
    fit = set(class_of_row) - set(test)
    return {"labelled": np.array(sorted(fit), dtype=np.int64), "test": np.array(sorted(test), dtype=np.int64)}


def twice(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Names that stand more than once, with the class of the first time and of a later one."""
    first: dict[str, str] = {}
    again = []
    for name, kind in rows:
        if name in first:
            again.append((name, first[name], kind))
        first.setdefault(name, kind)
    return again


def count_and_names(names: Sequence[str]) -> str:
    """`3: a.jpg, b.jpg, c.jpg`."""
    return f"{len(names):,} ({few(names)})"
