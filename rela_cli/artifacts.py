"""Artifacts on disk: what is made once, under a name that says what it was made of, and never half written.

An entry is a folder `outputs/cache/<kind>/<fingerprint>/`. It is filled beside its place and renamed into it,
manifest and all, so a folder that exists is complete. Run folders hold single files, each replaced atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rela_cli.errors import RelaError
from rela_cli.faults import fault

Facts = dict[str, Any]


def fingerprint(spec: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over everything in `spec`; the same for the same values in any order of keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Content hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then put it in place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    name = re.split(r"[.-]", path.name)[0]  # what its faults are called by
    try:
        fault(f"{name}.before_write")
        write(temporary)
        fault(f"{name}.after_write")
        _share(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        fault(f"{name}.after_fsync")
        os.replace(temporary, path)
        fault(f"{name}.after_replace")
        _sync_folder(path.parent)
        fault(f"{name}.after_sync")
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, written atomically."""
    text = json.dumps(value, indent=2, default=list) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Facts | None:
    """The object in a JSON file, or None when there is no such file or it is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Entry:
    """One cached artifact, made or not yet: kind, what it is made of, and where it lies."""

    kind: str
    spec: dict[str, Any]
    root: Path

    @property
    def hash(self) -> str:
        return fingerprint(self.spec)

    @property
    def folder(self) -> Path:
        return self.root / self.kind / self.hash

    @property
    def manifest(self) -> Facts | None:
        """The facts of a complete entry, else None: no folder, no manifest, or a file gone or of another size."""
        manifest = read_json(self.folder / "manifest.json") or {}
        files = [(self.folder / name, facts["bytes"]) for name, facts in manifest.get("files", {}).items()]
        whole = all(path.is_file() and path.stat().st_size == size for path, size in files)
        return manifest if manifest and whole else None

    def make(self, fill: Callable[[Path], Facts]) -> bool:
        """Make the entry unless it is there; `fill(folder)` writes files and returns facts for the manifest.

        One process makes it, others wait and take what it made. Returns True when this call did the work.
        """
        if self.manifest is not None:
            return False
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.hash}.lock")):
            if self.manifest is not None:
                return False
            self._fill(fill)
        return True

    def _fill(self, fill: Callable[[Path], Facts]) -> None:
        temporary = self.folder.with_name(f".{self.hash}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process; we hold the lock
        if self.folder.exists():
            self._set_aside()
        temporary.mkdir()
        try:
            facts = fill(temporary)
            fault(f"{self.kind}.after_fill")
            for path in temporary.iterdir():
                _share(path)
            files = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(temporary.iterdir())}
            manifest = {"kind": self.kind, "spec": self.spec, **facts, "files": files, **provenance()}
            write_json(temporary / "manifest.json", manifest)
            fault(f"{self.kind}.before_replace")
            os.replace(temporary, self.folder)
            fault(f"{self.kind}.after_replace")
            _sync_folder(self.folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _set_aside(self) -> None:
        """An entry that is not whole goes to *.corrupt, to be looked at, and is made again."""
        aside = self.folder.with_name(f"{self.hash}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.folder, aside)
        print(f"rela: {self.folder} is not whole; set aside as {aside.name} and made again", file=sys.stderr)


def provenance() -> Facts:
    """When and where something was made."""
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": socket.gethostname(), "pid": os.getpid()}


class RunLock:
    """Only one process works in a run folder; the second is told who the first is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = FileLock(folder / ".lock")

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            holder = read_json(self.folder / "manifest.json") or {}
            raise RelaError(
                f"{self.folder} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
                f"({holder.get('command', 'command unknown')}). Wait for it, or stop it"
            ) from None
        for leftover in self.folder.glob(".*.tmp"):  # of a killed process; we hold the lock
            leftover.unlink()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _share(path: Path) -> None:
    """The permissions that any new file would have: safetensors makes its own readable by their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
