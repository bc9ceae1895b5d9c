"""Artifacts on disk: what is made once, under a name that says what it was made of, and never half written.

An entry is a folder `outputs/cache/<kind>/<fingerprint>/`. It is filled beside its place and renamed into it,
manifest and all, so a folder that exists is complete. Run folders hold single files, each replaced atomically.

Whether an entry is there is told from its manifest and its files' sizes, in microseconds. Before it is read for work
its contents are hashed, once a process (about 1.2 GB/s): a flipped bit changes neither size nor time, and the formats
load it without a word. What is not whole is set aside and made again. A large file that was found intact is taken to be
so for a day, as long as the kernel's own times say that nobody has touched it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from rela_cli.errors import MissingError
from rela_cli.store.disk import disk_errors
from rela_cli.store.faults import fault
from rela_cli.store.files import Facts, _settled, fingerprint, provenance, read_json, remove_tree, sync, write_json
from rela_cli.store.integrity import _remember_made, damage
from rela_cli.store.locks import Lock
from rela_cli.store.notices import warn
from rela_cli.store.versions import MADE_BY, VERSIONS

OLD_SECONDS = 3600.0  # a temporary file this old, of a lone file, belongs to nobody any more


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
    def is_joined(self) -> bool:
        """Whether it is made of other entries of its kind, which its spec names."""
        return "members" in self.spec

    @property
    def folders(self) -> list[Path]:
        """Its folder, or those of the entries that it is made of."""
        return [self.root / self.kind / name for name in self.spec.get("members", ())] or [self.folder]

    @property
    def manifest(self) -> Facts | None:
        """The facts of an entry that is there, as far as its files' sizes tell; else None."""
        manifest = read_json(self.folder / "manifest.json")
        return manifest if manifest and damage(self.folder) is None else None

    def make(self, fill: Callable[[Path], Facts], needed: int | None = None, goes_on: bool = False) -> bool:
        """Make the entry unless it is there and intact; `fill(folder)` writes files and returns facts for the manifest.

        One process makes it, others wait and take what it made; when it is killed another takes over. `needed` is the
        estimate in bytes that a message about a full disk shows. Where it `goes_on`, `fill` finds in the folder what an
        earlier process had done; hidden files there are its own notes. Returns True when this call did the work.

        Raises:
            DiskError: no room, or no leave to write. Of the entry only what the next process can continue is left.
        """
        if damage(self.folder, contents=True) is None:
            return False
        with disk_errors(self.folder, needed):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self.lock.held():
                if reason := damage(self.folder, contents=True):
                    self._fill(fill, reason, goes_on)
        return bool(reason)

    @property
    def lock(self) -> Lock:
        return Lock(self.folder.with_name(f".{self.hash}.lock"), f"{self.kind}/{self.hash}")

    @property
    def part(self) -> Path:
        """Where the beginning of an entry lies that a later process goes on with."""
        return self.folder.with_name(f".{self.hash}.part")

    def _fill(self, fill: Callable[[Path], Facts], reason: str, goes_on: bool) -> None:
        temporary = self.part if goes_on else self.folder.with_name(f".{self.hash}.tmp")
        if not goes_on:
            remove_tree(temporary)  # of a killed process; we hold the lock
        elif os.path.lexists(temporary) and not temporary.is_dir():
            warn(f"{temporary} is no folder, or a link to nothing: removed, and the work begins anew")
            remove_tree(temporary)
        if self.folder.is_symlink() and not self.folder.exists():
            raise MissingError(
                f"{self.folder} is a link to {os.readlink(self.folder)}, which is not there. "
                f"Bring that folder back, or remove the link: the entry is then made again"
            )
        if self.folder.exists():
            self._set_aside(reason)
        temporary.mkdir(exist_ok=goes_on)
        try:
            if damage(temporary, contents=True):  # else an earlier process was killed just before the renaming
                (temporary / "manifest.json").unlink(missing_ok=True)
                facts = fill(temporary)
                fault(f"{self.kind}.after_fill")
                files = _settled(sorted(path for path in temporary.iterdir() if path.name[0] != "."))
                manifest = {"kind": self.kind, "spec": self.spec, **facts, "files": files, **provenance()}
                write_json(temporary / "manifest.json", manifest)
            fault(f"{self.kind}.before_replace")
            os.replace(temporary, self.folder)
            fault(f"{self.kind}.after_replace")
            for notes in self.folder.glob(".*"):
                notes.unlink()
            sync(self.folder.parent)
            _remember_made(self.folder, (self.manifest or {}).get("files", {}))
        finally:
            if not goes_on:
                with suppress(OSError):
                    remove_tree(temporary)

    def _set_aside(self, reason: str) -> None:
        """An entry that is not whole goes to *.corrupt, to be looked at, and is made again."""
        aside = self.folder.with_name(f"{self.hash}.corrupt")
        remove_tree(aside)
        os.replace(self.folder, aside)
        warn(f"{self.folder} is damaged ({reason}); set aside as {aside.name} and made again")


def entry_of(kind: str, spec: Facts, cache: Path) -> Entry:
    """The entry that this version of the stage which makes the kind makes of `spec`."""
    return Entry(kind, {"version": VERSIONS[MADE_BY[kind]], **spec}, cache)


def sweep_up(cache: Path) -> None:
    """Remove what killed processes have left in a cache: half-made entries that nobody is at, old temporary files."""
    for temporary in cache.glob("*/.*.tmp"):
        lock = Lock(temporary.with_name(f"{temporary.stem}.lock"), temporary.stem)
        with suppress(OSError, Timeout), lock.held(timeout=0):
            remove_tree(temporary)
    for temporary in cache.glob("index/*/.*.tmp"):
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > OLD_SECONDS:
                temporary.unlink()
