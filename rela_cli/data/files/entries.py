"""What lies in one folder: folders, image files, and by name what is neither, so that nothing is left out in silence.

Names that begin with a dot do not count, nor do files whose suffix is no image's. What looks like an image or a folder
and cannot be one is odd: a pipe, a device, a link to nothing, a link to a folder that it lies in, a folder that may not
be looked into.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rela_cli.data.decoding.images import is_image
from rela_cli.errors import MissingError

SETTLED_NS = 2_000_000_000  # a folder changed this recently may change again without a new time
NAMES_SHOWN = 3  # names in a message
ENCODING = sys.getfilesystemencoding()
HIDDEN, OTHER, LOOSE = "hidden", "other", "loose"  # why files are left out
WHAT = {  # one, and several
    HIDDEN: ("one whose name begins with a dot", "{} whose names begin with a dot"),
    OTHER: ("one file without the name of an image", "{} files without the name of an image"),
    LOOSE: ("one image beside the class folders", "{} images beside the class folders"),
}
ODD_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

File = tuple[str, int, int]  # path, bytes, modification time in nanoseconds
Left = dict[str, list[Any]]  # why files are left out -> how many, and the first of them


@dataclass(frozen=True)
class FolderListing:
    """One folder: the names of its folders, its image files, what is left out, and what is odd with the reason."""

    time: int
    folders: list[str] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    left: Left = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)


def list_folder(path: Path) -> FolderListing:
    """What lies in one folder; its time is unknown (-1) when it has only just changed, or holds anything odd."""
    found = FolderContents(path)
    try:
        changed = path.stat().st_mtime_ns
        with os.scandir(path) as entries:
            for entry in entries:
                found.add(entry)
    except OSError as error:
        return FolderListing(-1, odd={"": f"cannot be looked into: {error.strerror}"})
    left = {why: [len(names), *sorted(names)[:NAMES_SHOWN]] for why, names in found.left.items() if names}
    settled = time.time_ns() - changed > SETTLED_NS and not found.odd
    return FolderListing(changed if settled else -1, sorted(found.folders), found.files, left, found.odd)


class FolderContents:
    """The entries of one folder, sorted by what they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: list[str] = []
        self.files: list[File] = []
        self.odd: dict[str, str] = {}
        self.left: dict[str, list[str]] = {HIDDEN: [], OTHER: []}

    def add(self, entry: os.DirEntry[str]) -> None:
        """Put an entry where it belongs."""
        name = entry.name
        try:
            if name[0] == ".":
                self.left[HIDDEN] += [name] if is_image(name) or entry.is_dir() else []
            elif entry.is_dir():
                self.add_folder(entry)
            elif is_image(name):
                self.add_image(entry)
            elif entry.is_symlink() and "." not in name and not os.path.exists(entry.path):
                self.odd[name] = "is a link to nothing"
            else:
                self.left[OTHER].append(name)
        except OSError as error:
            self.odd[name] = complaint(error)

    def add_folder(self, entry: os.DirEntry[str]) -> None:
        """A folder, unless it is a link to one that it lies in."""
        if entry.is_symlink() and leads_up(entry.path, self.path):
            self.odd[entry.name] = "is a link to a folder that it lies in"
        else:
            self.folders.append(entry.name)

    def add_image(self, entry: os.DirEntry[str]) -> None:
        """A file with the name of an image, unless it is a pipe or the like."""
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            self.files.append((entry.name, status.st_size, status.st_mtime_ns))
        else:
            self.odd[entry.name] = f"is {ODD_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}"


def leads_up(link: str, folder: Path) -> bool:
    """Whether a link in `folder` leads to a folder above it, by the path that we came or by where that lies."""
    target, place = os.path.realpath(link), os.path.realpath(folder)
    above = {os.path.realpath(each) for each in (folder, *folder.parents)}
    return target in above or os.path.commonpath([target, place]) == target


def complaint(error: OSError) -> str:
    """What is wrong with an entry that the system says nothing about."""
    if error.errno == errno.ENOENT:
        return "is a link to nothing"
    return "is a link that leads to itself" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"


def folders_in(folder: Path) -> list[str]:
    """Names of the folders right in `folder`, sorted; without those that begin with a dot.

    Raises:
        MissingError: it may not be looked into.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and os.path.isdir(entry.path))
    except OSError as error:
        raise MissingError(f"{folder} cannot be looked into: {error.strerror}") from error


def add_up(lefts: Iterable[tuple[str, Left]]) -> Left:
    """What was left out of several folders, given with their paths, as one."""
    total: Left = {}
    for folder, left in lefts:
        for why, (count, *names) in left.items():
            mine = total.setdefault(why, [0])
            mine[0] += count
            mine += [f"{folder}/{name}" if folder else name for name in names][: NAMES_SHOWN + 1 - len(mine)]
    return total


def left_out_text(left: Left) -> str:
    """What was left out, in words; empty where it was nothing."""
    parts = []
    for why in (LOOSE, HIDDEN, OTHER):
        if why in left:
            count, *names = left[why]
            what = WHAT[why][0] if count == 1 else WHAT[why][1].format(f"{count:,}")
            parts.append(f"{what} ({', '.join(names)}{', ...' if count > len(names) else ''})")
    return "; ".join(parts)
