"""Whether the files of an entry still are what was written: sizes at once, contents before use."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from rela_cli.errors import RelaError
from rela_cli.store.files import Facts, file_sha256, fingerprint, load_json, read_json, reason_of, section, write_json
from rela_cli.store.notices import warn_once
from rela_cli.store.sealed import Damaged

REMEMBERED_BYTES = 1_000_000_000  # of a file whose hash is remembered from one process to the next: those take seconds

INTACT = ".intact.json"  # in an entry's folder: which large files were hashed, when, and what they were like then

DAY = 86_400.0  # seconds for which that is believed

RACY = 2.0  # seconds; a file that has changed this short a time ago may change again without another time (as in git)


def damage(folder: Path, contents: bool = False) -> str | None:
    """Why an entry's folder cannot be used, None when it is whole; `contents` compares hashes, not sizes alone."""
    if not folder.exists():
        return "not made yet"
    try:
        manifest, has_seal = load_json(folder / "manifest.json")
    except (OSError, Damaged) as error:
        return f"manifest.json cannot be read: {reason_of(error)}"
    files = manifest.get("files")
    if not isinstance(files, dict) or not (has_seal or _is_of(folder, manifest)):
        return "manifest.json cannot be read: it is not that of this entry"
    for name, facts in files.items():
        if not isinstance(facts, dict) or Path(name).name != name:
            return "manifest.json cannot be read: it is not that of this entry"
        if problem := file_damage(folder / name, facts, contents):
            return f"{name} {problem}"
    if contents and not has_seal:
        _adopt(folder, manifest)
    return None


def _is_of(folder: Path, manifest: Facts) -> bool:
    """Whether a manifest without a hash of itself can be an entry's: it says so, and names its files."""
    has_files = bool(manifest["files"]) or folder.parent.name == "baselines"
    return has_files and fingerprint(section(manifest, "spec")) == folder.name


def _adopt(folder: Path, manifest: Facts) -> None:
    """An entry of an older version is taken as it is: making it again may take days. From then on it has a hash."""
    warn_once(f"{folder}/manifest.json holds no hash of itself (an older version wrote it); it is taken as it is")
    with suppress(RelaError, OSError):  # a cache that cannot be written to: then it is said again next time
        write_json(folder / "manifest.json", manifest)


def file_damage(path: Path, facts: Facts, contents: bool, afresh: bool = False) -> str | None:
    """Why a file is not the one that `facts` (bytes, sha256) are of; None where it is.

    `contents` compares hashes; `afresh` reads the file although this process, or one of today, has done so.
    """
    if not path.is_file():
        return "is gone"
    if (size := path.stat().st_size) != facts.get("bytes"):
        return f"has {size} bytes instead of {facts.get('bytes')}"
    if contents and (file_sha256(path) if afresh else digest(path, keeps_note=True)) != facts.get("sha256"):
        return "does not hold what was written: its sha256 differs"
    return None


def digest(path: Path, keeps_note: bool = False) -> str:
    """sha256 of a file, read once a process as long as it does not change.

    keeps_note: of a large file it is written down beside it, and read once a day.
    """
    status = path.stat()
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _hashes:
        is_noted = keeps_note and status.st_size >= REMEMBERED_BYTES
        _hashes[key] = (_remembered(path, status) if is_noted else None) or file_sha256(path)
        if is_noted:
            _remember(path, status, _hashes[key])
    return _hashes[key]


def _remembered(path: Path, status: os.stat_result) -> str | None:
    """What another process has found the hash of this very file to be, within a day; else None.

    No program can change a file and put back its ctime, so what this misses is a disk that rots meanwhile.
    """
    note = section(read_json(path.with_name(INTACT)) or {}, path.name)
    when, sha256 = note.get("when"), note.get("sha256")
    if note.get("file") != _stamp(status) or not isinstance(sha256, str) or not isinstance(when, (int, float)):
        return None
    return sha256 if 0 <= time.time() - when < DAY else None


def _remember(path: Path, status: os.stat_result, sha256: str) -> None:
    """Write a hash down beside its file, unless one is there that still counts, or the file is too young to tell."""
    if time.time() - max(status.st_ctime, status.st_mtime) < RACY or _remembered(path, status):
        return
    note = path.with_name(INTACT)
    facts = {**(read_json(note) or {}), path.name: {"file": _stamp(status), "sha256": sha256, "when": time.time()}}
    temporary = note.with_name(f"{INTACT}.{os.getpid()}")
    with suppress(OSError):  # a cache that cannot be written to, a full disk: then it is hashed again
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(temporary, note)


def _remember_made(folder: Path, files: Facts) -> None:
    """Write down the hashes of large files just made, so that the next process need not read them."""
    for name, facts in files.items():
        if facts["bytes"] >= REMEMBERED_BYTES:
            status = (folder / name).stat()
            young = RACY - (time.time() - status.st_ctime)
            time.sleep(max(0.0, min(RACY, young)))  # it took longer to make than it takes to age
            _remember(folder / name, status, facts["sha256"])


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


_hashes: dict[tuple[str, int, int, int], str] = {}
