"""Errors of the disk in words, and whether there is room."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rela_cli.errors import DiskError
from rela_cli.terminal import as_size

BROKEN = (errno.EIO, errno.EXDEV, errno.EINVAL, errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTSUP)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

OUTPUTS = Path("outputs")

OUTPUTS_KEY = "paths.outputs=FOLDER"

CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

DENIED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)

FULL_WORDS = (
    "os error 28",
    "os error 27",
    "os error 122",
    "No space left",
    "File too large",
    "file write failed",
    "unexpected pos",
)


@contextmanager
def disk_errors(path: Path, needed: int | None = None, way_out: str = OUTPUTS_KEY) -> Iterator[None]:
    """What a full, protected, broken or lost disk makes of any library's writing, as one error with path and way out.

    Raises:
        DiskError: in place of those errors; all others pass.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:  # safetensors and torch have their own
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or any(word in str(error) for word in FULL_WORDS):
            raise DiskError(no_room(path, needed, str(error), way_out)) from error
        if isinstance(error, OSError) and number in DENIED and _is_about(path, error):
            what = f"{error.filename or path} cannot be written to: {error.strerror}"
            raise DiskError(f"{what}; choose another folder: {way_out}") from error
        if isinstance(error, OSError) and number in BROKEN and _is_about(path, error):
            raise DiskError(broken(path, error, way_out)) from error
        raise


def broken(path: Path, error: OSError, way_out: str) -> str:
    """The message about a disk that fails, or a folder that somebody has removed."""
    named = Path(error.filename or path) if isinstance(error.filename, str | None) else path
    what = f"{named} is gone: it was removed, or its disk, meanwhile" if error.errno == errno.ENOENT else ""
    return (
        f"{what or f'{named} cannot be read or written: {error.strerror}'}\n"
        f"look at that disk, or take another folder: {way_out}; what was complete is intact"
    )


def _is_about(path: Path, error: OSError) -> bool:
    """Whether an error names the path, a folder above it, or a file beside it; not, say, one of the user's images."""
    if not isinstance(error.filename, str):
        return error.errno != errno.ENOENT
    named, path = Path(error.filename).absolute(), path.absolute()
    return named in (path, *path.parents) or path.parent in named.parents


def no_room(path: Path, needed: int | None, why: str, way_out: str = OUTPUTS_KEY) -> str:
    """The message about a full disk: bytes are out, or inodes, of which each file takes one."""
    wants, free = f"about {as_size(needed)} needed" if needed else "more is needed", free_bytes(path)
    if has_no_inode(path) and (needed or 0) <= free:
        wants = "the file system can hold no more files (no inode is left), whatever their size"
    return (
        f"no room for {path}: {wants}, {as_size(free)} free ({why})\n"
        f"make room (`rela clean --dry-run` says what can go), or take another disk: {way_out}\n"
        f"what was complete is intact; the same command goes on from there"
    )


def ensure_room(path: Path, needed: int, why: str = "estimated before the work") -> None:
    """Before work that will write `needed` bytes.

    Raises:
        DiskError: there are not as many.
    """
    if needed > free_bytes(path):
        raise DiskError(no_room(path, needed, why))


def has_no_inode(path: Path) -> bool:
    """Whether no file can be made where `path` lies or would lie; some file systems count none."""
    found = os.statvfs(existing(path))
    return found.f_files > 0 and found.f_favail == 0


def free_bytes(path: Path) -> int:
    """Bytes free where `path` lies or would lie."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
