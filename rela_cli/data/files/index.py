"""Which image files a folder holds: listed once, and remembered where they are many.

What is remembered are arrays, mapped when they are used: all paths as one text, and numbers of each file. A later start
looks at the folders' own modification times and lists those alone that have changed, which is when files came or went.
A file rewritten in place changes no folder: in a remembered folder only `rela data check`, which reads contents, sees
it. What is remembered carries its own hashes, which are compared before it is believed.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any, overload

import numpy as np

from rela_cli.data.files.entries import ENCODING, LOOSE, NAMES_SHOWN, File, FolderListing, Left, add_up, list_folder
from rela_cli.store.files import Facts, file_sha256, fingerprint, read_json, write_filled, write_text
from rela_cli.store.notices import warn

REMEMBERED = 10_000  # files; fewer are listed in milliseconds, and then a rewritten file is seen at once
PATHS_AT_ONCE = 1 << 16  # paths that are decoded at a time

DEEPEST_FOLDER = 100  # folders in folders


@dataclass(frozen=True)
class Known:
    """What is known of a folder: its files are `count` rows from `first` on; -1 where others stand between them."""

    time: int
    folders: list[str]
    first: int
    count: int
    left: Left = field(default_factory=dict)


class PathTable(Sequence[str]):
    """Paths as a sequence; in memory they are one text and where each begins, both of which may be mapped.

    `rows` are those that count, None for all.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.text, self.ends, self.rows = text, ends, rows

    def __len__(self) -> int:
        return len(self.ends) - 1 if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> PathTable: ...

    def __getitem__(self, row: int | slice) -> str | PathTable:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        row = range(len(self))[row]
        row = row if self.rows is None else int(self.rows[row])
        return self.text[self.ends[row] : self.ends[row + 1]].tobytes().decode(ENCODING, "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        if self.rows is not None:
            yield from (self[row] for row in range(len(self)))
            return
        for start in range(0, len(self), PATHS_AT_ONCE):
            ends = self.ends[start : start + PATHS_AT_ONCE + 1]
            text = self.text[ends[0] : ends[-1]].tobytes()
            yield from (text[a:b].decode(ENCODING, "surrogateescape") for a, b in pairwise((ends - ends[0]).tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: np.ndarray) -> PathTable:
        """Some of them; all of them is itself, which is read faster."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return PathTable(self.text, self.ends, rows if self.rows is None else self.rows[rows])


@dataclass
class FileTable:
    """The files of an index, row by row: paths, and (2, N) sizes and times."""

    text: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray

    def files(self, known: Known, prefix: int) -> list[File]:
        """A folder's files by their own names, which stand behind `prefix` characters of their paths."""
        paths = PathTable(self.text, self.ends[known.first : known.first + known.count + 1])
        sizes, times = self.numbers[:, known.first : known.first + known.count].tolist()
        return [(path[prefix:], *rest) for path, *rest in zip(paths, sizes, times, strict=True)]


class Growing:
    """A table while it is filled: some 30 bytes a file besides its path."""

    def __init__(self) -> None:
        self.text, self.ends, self.sizes, self.times = bytearray(), array("q", [0]), array("q"), array("q")

    def add(self, path: str, size: int, at: int) -> None:
        self.text += path.encode(ENCODING, "surrogateescape")
        self.ends.append(len(self.text))
        self.sizes.append(size)
        self.times.append(at)

    def table(self) -> FileTable:
        whole = (np.frombuffer(self.text, dtype=np.uint8), np.frombuffer(self.ends, dtype=np.int64))
        return FileTable(*whole, np.array([self.sizes, self.times], dtype=np.int64))


@dataclass
class Index:
    """Image files below some folders of `root`, as paths that start at those folders, sorted; one list a folder."""

    root: Path
    tops: list[str]
    only: list[str] | None = None  # names right below the tops that count, None for all
    sorted_tops: frozenset[str] = frozenset()  # those that hold a folder a class: images beside these do not count
    known: dict[str, Known] = field(default_factory=dict)
    found: dict[str, Known] = field(default_factory=dict)
    borders: list[int] = field(default_factory=list)  # first row of each top, and the end
    table: FileTable | None = None
    fingerprint: str = ""
    odd: dict[str, dict[str, str]] = field(default_factory=dict)  # top -> what cannot be an image, and why

    @property
    def place(self) -> str:
        """The name that an index is remembered under."""
        where = {"root": str(self.root.resolve()), "tops": self.tops, "only": self.only}
        return fingerprint({**where, "sorted_tops": sorted(self.sorted_tops)})

    @property
    def lists(self) -> list[PathTable]:
        """The paths below each top."""
        assert self.table is not None
        return [PathTable(self.table.text, self.table.ends[a : b + 1]) for a, b in pairwise(self.borders)]

    def count(self) -> int:
        return self.borders[-1]

    def filled(self, top: str) -> set[str]:
        """Names right below a top folder that hold images, at any depth."""
        start = f"{top}/" if top else ""
        inner = (name[len(start) :] for name, known in self.found.items() if known.count and name.startswith(start))
        return {name.partition("/")[0] for name in inner if name}

    def left(self) -> Left:
        """What does not count, and why: how many, and the first paths, from the root on."""
        return add_up(sorted((name, known.left) for name, known in self.found.items()))

    # ------------------------------------------------------------------------------------------------- reading

    def read(self) -> None:
        """List what is there; folders that have not changed are taken as they are known."""
        if self.table is not None and all(self.is_same(name) for name in self.known):
            self.found = self.known
            return
        before, growing, digest = self.table, Growing(), hashlib.sha256(b'{"files":[')
        self.borders, self.found, self.odd = [0], {}, {}
        for top in self.tops:
            for path, size, at in self.below(top, "", before, growing):
                name = quoted(as_utf8(f"{top}/{path}" if top else path))  # what follows is JSON, put together by hand
                digest.update(f"{',' if len(growing.sizes) else ''}[{name},{size},{at}]".encode())
                growing.add(path, size, at)
            self.borders.append(len(growing.sizes))
        digest.update(b"]}")
        self.table, self.fingerprint = growing.table(), digest.hexdigest()[:16]

    def is_same(self, name: str) -> bool:
        """Whether a remembered folder has not changed."""
        try:
            return self.known[name].time == (self.root / name).stat().st_mtime_ns
        except OSError:
            return False

    def below(self, name: str, inner: str, before: FileTable | None, growing: Growing) -> Iterator[File]:
        """The files of a folder and of all below it, in the order of their paths; `inner` is its path below its top.

        A folder stands where its name with a slash would, so nothing has to be sorted but one folder's names.
        """
        folder = self.folder(name, inner, before)
        prefix = f"{inner}/" if inner else ""
        self.note_odd(name, inner, folder)
        entries: list[tuple[str, File | None]] = [(file[0], file) for file in folder.files]
        entries += [(f"{each}/", None) for each in folder.folders if self.counts(name, each)]
        first, own = len(growing.sizes), 0
        together = True
        for entry, file in sorted(entries, key=lambda pair: pair[0]):
            if file is None:
                together = together and own in (0, len(folder.files))
                each = entry[:-1]
                yield from self.below(f"{name}/{each}" if name else each, prefix + each, before, growing)
                continue
            first = first if own else len(growing.sizes)
            own += 1
            yield prefix + file[0], file[1], file[2]
        self.found[name] = Known(folder.time, folder.folders, first if together else -1, own, folder.left)

    def note_odd(self, name: str, inner: str, folder: FolderListing) -> None:
        """Remember by its path below its top what cannot be an image."""
        top = name[: len(name) - len(inner)].rstrip("/")
        odd = {f"{inner}/{each}".strip("/"): why for each, why in folder.odd.items()}
        self.odd.setdefault(top, {}).update(odd)

    def counts(self, name: str, inner: str) -> bool:
        """Whether a folder in another one is looked at."""
        return self.only is None or name not in self.tops or inner in self.only

    def folder(self, name: str, inner: str, before: FileTable | None) -> FolderListing:
        """What lies in one folder, remembered or listed."""
        if inner.count("/") >= DEEPEST_FOLDER:
            return FolderListing(-1, odd={"": f"lies more than {DEEPEST_FOLDER} folders deep"})
        known = self.known.get(name)
        if before is None or known is None or known.first < 0 or not self.is_same(name):
            found = list_folder(self.root / name)
            return without_files(found) if name in self.sorted_tops else found
        files = before.files(known, len(inner) + 1 if inner else 0)
        return FolderListing(known.time, known.folders, files, known.left)


def without_files(folder: FolderListing) -> FolderListing:
    """A folder of class folders: images beside these are left out."""
    names: list[Any] = sorted(name for name, *_ in folder.files)
    left: Left = {LOOSE: [len(names), *names[:NAMES_SHOWN]]} if names else {}
    return replace(folder, files=[], left={**folder.left, **left})


def as_utf8(path: str) -> str:
    """A path as a UTF-8 locale would have it, so that fingerprints do not depend on the locale."""
    if ENCODING == "utf-8" or path.isascii():
        return path
    return path.encode(ENCODING, "surrogateescape").decode(errors="surrogateescape")


def list_images(
    root: Path,
    tops: Sequence[str],
    only: Sequence[str] | None,
    cache: Path | None,
    afresh: bool = False,
    sorted_tops: Iterable[str] = (),
) -> Index:
    """The image files below the folders `tops` of `root`, remembered in `cache` when there are many.

    `afresh` reads every folder again whatever is remembered. Of `sorted_tops` the files that lie in a folder count.
    """
    index = Index(root, list(tops), None if only is None else sorted(only), frozenset(sorted_tops))
    folder = cache / "index" / index.place if cache else None
    if folder and not afresh:
        recall(index, folder)
    index.read()
    if folder and index.count() >= REMEMBERED and index.found is not index.known:
        with suppress(OSError):  # it would only have saved time
            write_index(index, folder)
    return index


# ---------------------------------------------------------------------------------------------------------- on disk


def recall(index: Index, folder: Path) -> None:
    """Put what an earlier start has found into `index`, if it is all there and as it was written."""
    path = folder / "index.json"
    if not path.exists():
        return
    try:
        stored: Facts = read_json(path) or {}
        files = index_files(folder, stored["fingerprint"])
        if stored.pop("check") != fingerprint(stored) or stored["arrays"] != [file_sha256(file) for file in files]:
            raise ValueError
        known = {name: Known(*facts) for name, facts in stored["folders"].items()}
        table = FileTable(*(np.load(file, mmap_mode="r") for file in files))
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        warn(f"the list of files in {folder} is damaged, or another rela's; the folders are read again")
        return
    index.known, index.table, index.borders = known, table, stored["borders"]
    index.fingerprint = stored["fingerprint"]


def index_files(folder: Path, name: str) -> list[Path]:
    """The arrays of an index, by its fingerprint, so that they cannot be another's."""
    return [folder / f"{name}.{array}.npy" for array in ("text", "ends", "numbers")]


def write_index(index: Index, folder: Path) -> None:
    """Arrays, then the JSON file that names them; what an earlier one named goes. 1.3 million files are some 70 MB."""
    assert index.table is not None
    folder.mkdir(parents=True, exist_ok=True)
    files, table = index_files(folder, index.fingerprint), index.table
    for path, values in zip(files, (table.text, table.ends, table.numbers), strict=True):
        write_filled(path, partial(np.save, arr=values))
    folders = {name: [k.time, k.folders, k.first, k.count, k.left] for name, k in index.found.items()}
    facts: Facts = {"root": str(index.root.resolve()), "fingerprint": index.fingerprint, "borders": index.borders}
    facts |= {"folders": folders, "arrays": [file_sha256(file) for file in files]}
    text = json.dumps({**facts, "check": fingerprint(facts)})  # a hash of itself: a bit may flip here, too
    write_text(folder / "index.json", text)
    for old in set(folder.glob("*.npy")) - set(files):
        old.unlink(missing_ok=True)
