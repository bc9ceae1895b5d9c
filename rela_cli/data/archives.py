"""Unpacking tar and zip archives, which may want to write outside of their folder: such an archive is refused whole."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from rela_cli.errors import MissingError


def unpack(archive: Path, folder: Path) -> None:
    """Everything in a tar (of any compression) or zip into `folder`; nothing at all if one member is not to be trusted.

    Raises:
        MissingError: not an archive, a damaged one, or one with a path, link or device that leads outside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (unpack_zip if zipfile.is_zipfile(archive) else unpack_tar)(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise MissingError(f"{archive} cannot be unpacked: {error}") from error


def unpack_tar(archive: Path, folder: Path) -> None:
    """Checked by ourselves first, then by Python's own filter where it has one."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            if complaint := complaint_about(member):
                raise MissingError(f"{archive} is refused: {member.name!r} {complaint}. Nothing was unpacked")
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members, **safe)


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


def complete(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder beside its place and put it there when it is whole."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed process
    fill(part)
    part.replace(folder)
