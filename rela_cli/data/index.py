"""Which image files a folder holds: listed once, and remembered where they are many.

A remembered folder is read again when its own modification time has changed, which is when files came or went. A
file rewritten in place changes no folder: in a remembered folder only `rela data check`, which reads contents, sees it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rela_cli.artifacts import Facts, fingerprint, read_json, write_atomic
from rela_cli.data.images import SUFFIXES

REMEMBERED = 10_000  # files; fewer are listed in milliseconds, and then a rewritten file is seen at once
SETTLED_NS = 2_000_000_000  # a folder changed this recently may change again without a new time

File = tuple[str, int, int]  # path, bytes, modification time in nanoseconds


@dataclass(frozen=True)
class Folder:
    """One folder: the names of its folders, and its image files."""

    time: int
    folders: list[str]
    files: list[File]


@dataclass
class Index:
    """Image files below some folders of `root`, as paths that start at those folders, sorted; one list a folder."""

    root: Path
    tops: list[str]
    only: list[str] | None = None  # names right below the tops that count, None for all
    known: dict[str, Folder] = field(default_factory=dict)
    found: dict[str, Folder] = field(default_factory=dict)
    lists: list[list[File]] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def place(self) -> str:
        """The name that an index is remembered under."""
        return fingerprint({"root": str(self.root.resolve()), "tops": self.tops, "only": self.only})

    def read(self) -> None:
        """List what is there; folders that have not changed are taken as they are known."""
        self.lists = [sorted(self.below(top)) for top in self.tops]
        if not self.fingerprint or self.found != self.known:
            self.fingerprint = fingerprint({"files": [[f"{t}/{p}" if t else p, *rest] for t, p, *rest in self.rows()]})

    def rows(self) -> Iterator[tuple[str, str, int, int]]:
        for top, files in zip(self.tops, self.lists, strict=True):
            yield from ((top, *file) for file in files)

    def below(self, top: str) -> Iterator[File]:
        """The files of one top folder, paths relative to it."""
        for name, folder in self.walk(top):
            inner = name[len(top) :].lstrip("/")
            yield from ((f"{inner}/{file}" if inner else file, size, at) for file, size, at in folder.files)

    def walk(self, name: str) -> Iterator[tuple[str, Folder]]:
        """A folder and all below it."""
        folder = self.known.get(name)
        if folder is None or folder.time != (self.root / name).stat().st_mtime_ns:
            folder = list_folder(self.root / name)
        self.found[name] = folder
        yield name, folder
        for inner in folder.folders:
            if self.only is None or name not in self.tops or inner in self.only:
                yield from self.walk(f"{name}/{inner}" if name else inner)

    def count(self) -> int:
        return sum(map(len, self.lists))


def list_folder(path: Path) -> Folder:
    """What lies in one folder; its time is unknown (-1) when it has only just changed."""
    changed = path.stat().st_mtime_ns
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                status = entry.stat()
                files.append((entry.name, status.st_size, status.st_mtime_ns))
    return Folder(changed if time.time_ns() - changed > SETTLED_NS else -1, sorted(folders), files)


def list_images(
    root: Path, tops: Sequence[str], only: Sequence[str] | None, cache: Path | None, afresh: bool = False
) -> Index:
    """The image files below the folders `tops` of `root`, remembered in `cache` when there are many.

    `afresh` reads every folder again whatever is remembered.
    """
    index = Index(root, list(tops), None if only is None else sorted(only))
    path = cache / "index" / index.place / "index.json" if cache else None
    if path and not afresh:
        remember(index, read_json(path) or {})
    index.read()
    if path and index.count() >= REMEMBERED and index.found != index.known:
        with suppress(OSError):  # it would only have saved time
            write_index(index, path)
    return index


def remember(index: Index, stored: Facts) -> None:
    """Put what an earlier start has found into `index`."""
    folders = stored.get("folders", {})
    index.known = {name: Folder(at, inner, [(*f,) for f in files]) for name, (at, inner, files) in folders.items()}
    index.fingerprint = stored.get("fingerprint", "")


def write_index(index: Index, path: Path) -> None:
    """One JSON file, without spaces: 1.3 million files are some 80 MB."""
    folders = {name: [folder.time, folder.folders, folder.files] for name, folder in index.found.items()}
    content = {"root": str(index.root.resolve()), "fingerprint": index.fingerprint, "folders": folders}
    text = json.dumps(content, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
