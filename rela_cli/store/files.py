"""Files that are whole or not there: hashes, atomic writes, JSON, and what a writer leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rela_cli.errors import MissingError, RelaError
from rela_cli.store.disk import CANNOT, OUTPUTS_KEY, disk_errors
from rela_cli.store.faults import fault
from rela_cli.store.notices import warn_once
from rela_cli.store.sealed import BY_HAND, Damaged, sealed, unsealed
from rela_cli.store.sealed import Facts as Facts
from rela_cli.store.secrets import redact


def fingerprint(spec: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over everything in `spec`; the same for the same values in any order of keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Content hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()


TEMPORARIES = (".*.tmp", ".tmp*")  # how half-written files are called: by `write_atomic`, and by safetensors


def remove_temporaries(folder: Path) -> None:
    """What a killed process has left half-written in a folder; the caller holds its lock."""
    for pattern in TEMPORARIES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def write_atomic(
    path: Path,
    write: Callable[[Path], object],
    way_out: str = OUTPUTS_KEY,
    named: Callable[[Path], Path] | None = None,
) -> Path:
    """Let `write` fill a temporary file in the same folder, then put it in place in one step; where it lies now.

    named: the path, from the file that was written, where only its content tells.

    Raises:
        DiskError: no room, or no leave to write; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    name = re.split(r"[.-]", path.name)[0]  # what its faults are called by
    with disk_errors(path, way_out=way_out):
        try:
            fault(f"{name}.before_write")
            write(temporary)
            fault(f"{name}.after_write")
            _share(temporary)
            sync(temporary)
            fault(f"{name}.after_fsync")
            path = named(temporary) if named else path
            os.replace(temporary, path)
            fault(f"{name}.after_replace")
            sync(path.parent)
            fault(f"{name}.after_sync")
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_filled(path: Path, fill: Callable[[BinaryIO], object], way_out: str = OUTPUTS_KEY) -> None:
    """Let `fill` write a binary file, which appears whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            fill(file)

    write_atomic(path, write, way_out)


def write_text(path: Path, text: str, way_out: str = OUTPUTS_KEY) -> None:
    """A text as a file that appears whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), way_out)


def check_same(theirs: Facts, ours: Facts, there: str) -> None:
    """What lies there was made of what would be made now.

    Raises:
        RelaError: something differs.
    """
    if theirs != ours:
        keys = [key for key, value in ours.items() if theirs.get(key) != value]
        raise RelaError(f"{there} (its {', '.join(keys)} differ): say another --to, or remove that one")


def write_json(path: Path, facts: Facts) -> None:
    """Readable JSON without secrets, with its own hash, written atomically."""
    write_text(path, json.dumps(sealed(redact(facts)), indent=2) + "\n")


def read_json(path: Path) -> Facts | None:
    """The object in a JSON file, or None when there is no such file or it does not hold what was written."""
    try:
        return load_json(path)[0]
    except (OSError, Damaged):
        return None


def load_json(path: Path) -> tuple[Facts, bool]:
    """The object in a JSON file, and whether it carried its own hash; files of older versions do not.

    Raises:
        OSError: it cannot be read.
        Damaged: it does not hold what was written.
    """
    return unsealed(path.read_bytes())


def read_whole(path: Path) -> Facts:
    """The object in a JSON file whose loss must not go unnoticed; empty where there is no such file.

    Raises:
        MissingError: it cannot be read, or does not hold what was written.
    """
    try:
        facts, has_seal = load_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        raise MissingError(f"{path} is damaged: {reason_of(error)}. Put back a copy; {BY_HAND}") from error
    if not has_seal:
        warn_once(f"{path} holds no hash of itself (an older version wrote it), so no damage in it would be noticed")
    return facts


def keep_damaged(path: Path) -> None:
    """Before a JSON file is written anew: one that does not hold what was written is kept, as *.corrupt."""
    if path.exists() and read_json(path) is None:
        os.replace(path, f"{path}.corrupt")


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, without its name."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def section(facts: Mapping[str, Any], key: str) -> Facts:
    """The object under a key of a file that anybody may have written; empty when there is none."""
    value = facts.get(key)
    return value if isinstance(value, dict) else {}


def provenance() -> Facts:
    """When and where something was made."""
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": socket.gethostname(), "pid": os.getpid()}


def remove_tree(path: Path) -> None:
    """Remove a file, a link (what it points to stays), or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def _share(path: Path) -> None:
    """The permissions that any new file would have: safetensors makes its own readable by their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    with suppress(OSError):  # some network file systems keep no permissions
        path.chmod(0o666 & ~mask)


def _settled(paths: list[Path]) -> Facts:
    """Files put onto the disk, and hashed meanwhile: sizes and hashes by name."""
    with ThreadPoolExecutor(1) as pool:
        synced = [pool.submit(work, path) for path in paths for work in (_share, sync)]
        files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
        for done in synced:
            done.result()
    return files


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, onto the disk; some file systems cannot do that for a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
