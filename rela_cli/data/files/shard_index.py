"""Where the images of a shard lie, as it is remembered in the cache."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from rela_cli.store.files import write_atomic


@dataclass(frozen=True)
class ShardIndex:
    """The images of a shard: (N,) first bytes and lengths int64, names and labels as bytes; b"" where there is none."""

    start: np.ndarray
    length: np.ndarray
    name: np.ndarray
    label: np.ndarray


def remembered(path: Path | None) -> ShardIndex | None:
    """What an earlier start found, if it was written down and is whole."""
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile):
        if path and path.is_file():
            with np.load(path) as file:
                return ShardIndex(file["start"], file["length"], file["name"], file["label"])
    return None


def remember(path: Path, index: ShardIndex) -> None:
    """Write an index down."""

    def into(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **vars(index))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, into)
