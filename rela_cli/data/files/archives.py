"""Unpacking tar and zip archives, whole or not at all, by one process at a time.

An archive may want to write outside of its folder: such a one is refused. What is unpacked is filled in beside its
place, counted, and renamed into it, so a folder that is there is whole, whatever was killed meanwhile.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from rela_cli.errors import MissingError
from rela_cli.store.files import remove_tree
from rela_cli.store.locks import Lock


def unpack(archive: Path, folder: Path) -> None:
    """Everything in a tar (of any compression) or zip into `folder`; nothing at all if one member is not to be trusted.

    Raises:
        MissingError: not an archive, a damaged one, or one with a path, link or device that leads outside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(os.listdir(folder))
    try:
        (unpack_zip if zipfile.is_zipfile(archive) else unpack_tar)(archive, folder)
    except BaseException as error:
        for name in set(os.listdir(folder)) - before:
            with suppress(OSError):
                remove_tree(folder / name)
        if isinstance(error, (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError)):
            raise MissingError(f"{archive} cannot be unpacked: {error}. Nothing was unpacked") from error
        raise


def unpack_tar(archive: Path, folder: Path) -> None:
    """Checked by ourselves first, then by Python's own filter where it has one."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            if complaint := complaint_about(member):
                raise MissingError(f"{archive} is refused: {member.name!r} {complaint}. Nothing was unpacked")
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members, **safe)
    count(archive, folder, ((member.name, member.size) for member in members if member.isreg()))


def complaint_about(member: tarfile.TarInfo) -> str | None:
    """Why a member of a tar is not to be trusted."""
    if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        return "is a device or a pipe"
    if leads_outside(PurePosixPath(member.name)):
        return "leads outside of the folder"
    if member.issym() and leads_outside(PurePosixPath(member.name).parent / member.linkname):
        return f"is a link that leads outside of the folder, to {member.linkname!r}"
    if member.islnk() and leads_outside(PurePosixPath(member.linkname)):
        return f"is a link that leads outside of the folder, to {member.linkname!r}"
    return None


def leads_outside(path: PurePosixPath) -> bool:
    """Whether a relative path climbs above where it starts, or is none."""
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return path.is_absolute()


def unpack_zip(archive: Path, folder: Path) -> None:
    """Python takes `..` out of the names by itself; a zip that has any is still refused."""
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if leads_outside(PurePosixPath(name.replace("\\", "/"))):
                raise MissingError(f"{archive} is refused: {name!r} leads outside of the folder. Nothing was unpacked")
        file.extractall(folder)
        count(archive, folder, ((info.filename, info.file_size) for info in file.infolist() if not info.is_dir()))


def count(archive: Path, folder: Path, members: Iterable[tuple[str, int]]) -> None:
    """Whether every file of an archive is there, in its size.

    Raises:
        MissingError: one is not.
    """
    for name, size in dict(members).items():  # of several with one name the last is there
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise MissingError(f"{archive} was not unpacked whole: {name!r} is not there. Nothing is left of it")


# ------------------------------------------------------------------------------------- whole, and by one process


def fill_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder beside its place and put it there when it is whole, by one process while others wait."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, part = (folder.with_name(f".{folder.name}.{kind}") for kind in ("lock", "part"))
    with Lock(lock, str(folder)).held():
        if not folder.is_dir():
            shutil.rmtree(part, ignore_errors=True)  # of a killed process; we hold the lock
            try:
                fill(part)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        lock.unlink(missing_ok=True)  # who waits, or comes later, finds the folder, so nobody needs the lock any more


def unpack_one(archive: Path, folder: Path, fetch: Callable[[], object] = lambda: None) -> None:
    """An archive that holds one folder, of the name that `folder` has; `fetch` gets the archive first.

    Raises:
        MissingError: it cannot be unpacked, or holds something else.
    """

    def fill(part: Path) -> None:
        fetch()
        unpack(archive, part)
        inner = part / folder.name
        if not inner.is_dir():
            raise MissingError(f"{archive} holds no folder {folder.name}: it is another archive")
        aside = part.with_name(f"{part.name}.inner")
        shutil.rmtree(aside, ignore_errors=True)
        inner.replace(aside)
        shutil.rmtree(part)
        aside.replace(part)

    fill_folder(folder, fill)
