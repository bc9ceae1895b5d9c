"""Which split a file belongs to: its own name says it, else the nearest folder's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rela_cli.data.decoding.undecodable import say_once
from rela_cli.errors import MissingError
from rela_cli.store.files import fingerprint
from rela_cli.terminal import few

PATTERNS = {"train": r"train", "test": r"(test|val|valid|validation)"}  # how file or folder names start


def split_files(root: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of each split below `root`, in the order of their paths; hidden ones do not count.

    Raises:
        MissingError: something that is no file has such a name.
    """
    found = [p for p in sorted(root.rglob(f"*{suffix}")) if not is_hidden(p.relative_to(root))]
    files = {split: [p for p in found if split_of(p.relative_to(root)) == split] for split in PATTERNS}
    if odd := [path for paths in files.values() for path in paths if not path.is_file()]:
        raise MissingError(f"{odd[0]} is no file (a link to nothing, a pipe, or a folder): remove it")
    say_what_is_odd(
        root, [str(p.relative_to(root)) for p in found if split_of(p.relative_to(root)) is None], files["test"]
    )
    return files


def say_what_is_odd(root: Path, unused: list[str], test: list[Path]) -> None:
    """Which files are not used, and that files of test and of validation are taken together."""
    if unused:
        say_once(f"{root}: not used, since no name says train, test or validation: {few(unused)}")
    if len({split_word(path.relative_to(root)) for path in test}) > 1:
        say_once(f"{root}: its files of test and of validation are taken together as test")


def split_of(path: Path) -> str | None:
    """The split that a file's own name says, else the nearest folder's; None where no name says any."""
    for name in reversed(path.parts):
        for split, pattern in PATTERNS.items():
            if re.match(rf"{pattern}(\b|[-_.])", name, re.IGNORECASE):
                return split
    return None


def split_word(path: Path) -> str:
    """Whether the name that says test says `test`, or `val` in one of its forms."""
    for name in reversed(path.parts):
        if found := re.match(r"test|val", name, re.IGNORECASE):
            return found.group().lower()
    return ""


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def first_of_each_split(root: Path, names: Iterable[Path], what: str) -> dict[str, Path]:
    """The first folder of each split. A line names each folder that is not used: a further one, or one of no split."""
    found: dict[str, Path] = {}
    for name in names:
        split = split_of(name)
        if split is None or split in found:
            taken = f"{found[split].name} is taken" if split else "it is neither train nor test nor validation"
            say_once(f"{root}: {what} {name} is not used: {taken}")
        else:
            found[split] = root / name
    return found


def listed(path: Path, root: Path) -> list[Any]:
    """A file below `root` in a listing: path, bytes, time."""
    status = path.stat()
    return [path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns]


def files_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A hash over the names, sizes and times of files below `root`."""
    return fingerprint({"files": [listed(path, root) for path in files]})
