"""Where the images of a shard lie, as it is remembered in the cache; and which of that no dataset will read again."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from rela_cli.store.files import write_filled
from rela_cli.store.outputs import Leftover


@dataclass(frozen=True)
class ShardIndex:
    """The images of a shard: (N,) first bytes and lengths int64, names and labels as bytes; b"" where there is none."""

    start: np.ndarray
    length: np.ndarray
    name: np.ndarray
    label: np.ndarray


def place_of(cache: Path) -> Path:
    """Where indices of shards are kept."""
    return cache / "index" / "shards"


def remembered(path: Path | None) -> ShardIndex | None:
    """What an earlier start found, if it was written down, with the shard that it is of, and is whole."""
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile):
        if path and path.is_file():
            with np.load(path) as file:
                shard_in(file)
                return ShardIndex(file["start"], file["length"], file["name"], file["label"])
    return None


def remember(path: Path, index: ShardIndex, shard: Path) -> None:
    """Write an index down, and which file it is of: by path, size and time."""
    told = shard.stat()
    of: dict[str, Any] = {"shard": np.array(os.fsencode(shard.resolve()))}
    of["told"] = np.array([told.st_size, told.st_mtime_ns])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_filled(path, lambda file: np.savez(file, **vars(index), **of))


def shard_in(file: np.lib.npyio.NpzFile) -> tuple[Path, tuple[int, int]]:
    """The shard that an index is of, its size and its time."""
    size, time = file["told"].tolist()
    return Path(os.fsdecode(file["shard"].item())), (size, time)


def unused_indices(outputs: Path) -> list[Leftover]:
    """The indices in the cache that no dataset reads again, since their shards are gone or are other ones now."""
    found = [(path, why_unused(path)) for path in sorted(place_of(outputs / "cache").glob("*.npz"))]
    return [Leftover(path, why, path.stat().st_size) for path, why in found if why]


def why_unused(path: Path) -> str | None:
    """In words; None of an index that is read again, or of whose shard nothing can be told now."""
    try:
        with np.load(path) as file:
            shard, before = shard_in(file)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return "an index of shards that is damaged or of an older version"
    try:
        told = shard.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"the index of a shard that is gone: {shard}"
    except OSError:  # a disk that does not answer, a folder that may not be read
        return None
    is_same = (told.st_size, told.st_mtime_ns) == before
    return None if is_same else f"the index of a shard that was written again: {shard}"
