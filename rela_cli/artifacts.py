"""Artifacts on disk: what is made once, under a name that says what it was made of, and never half written.

An entry is a folder `outputs/cache/<kind>/<fingerprint>/`. It is filled beside its place and renamed into it,
manifest and all, so a folder that exists is complete. Run folders hold single files, each replaced atomically.

Whether an entry is there is told from its manifest and its files' sizes, in microseconds. Before it is read for work
its contents are hashed, once a process (about 1.2 GB/s): a flipped bit changes neither size nor time, and the formats
load it without a word. What is not whole is set aside and made again. A large file that was found intact is taken to be
so for a day, as long as the kernel's own times say that nobody has touched it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rela_cli.errors import DiskError, MissingError, RelaError
from rela_cli.faults import fault
from rela_cli.redact import redact
from rela_cli.sealed import BY_HAND, Damaged, opened, sealed
from rela_cli.terminal import indented

Facts = dict[str, Any]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # with ENOSYS filelock takes lock files instead
BROKEN = (errno.EIO, errno.EXDEV, errno.EINVAL, errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTSUP)
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
LARGE = 1_000_000_000  # bytes of a file whose hash is remembered from one process to the next: those take seconds
INTACT = ".intact.json"  # in an entry's folder: which large files were hashed, when, and what they were like then
DAY = 86_400.0  # seconds for which that is believed
RACY = 2.0  # seconds; a file that has changed this short a time ago may change again without another time (as in git)
NOTE_SECONDS = 2.0  # how long a process that has just taken a lock may need to say who it is
OLD_SECONDS = 3600.0  # a temporary file this old, of a lone file, belongs to nobody any more


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


def write_atomic(path: Path, write: Callable[[Path], object], way_out: str = OUTPUTS_KEY) -> None:
    """Let `write` fill a temporary file in the same folder, then put it in place in one step.

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
            os.replace(temporary, path)
            fault(f"{name}.after_replace")
            sync(path.parent)
            fault(f"{name}.after_sync")
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: Path, facts: Facts) -> None:
    """Readable JSON without secrets, with its own hash, written atomically."""
    text = json.dumps(sealed(redact(facts)), indent=2) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
    return opened(path.read_bytes())


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
        """The facts of an entry that is there, as far as its files' sizes tell; else None."""
        manifest = read_json(self.folder / "manifest.json")
        return manifest if manifest and damage(self.folder) is None else None

    def make(self, fill: Callable[[Path], Facts], needed: int | None = None, goes_on: bool = False) -> bool:
        """Make the entry unless it is there and intact; `fill(folder)` writes files and returns facts for the manifest.

        One process makes it, others wait and take what it made; when it is killed another takes over. `needed` is the
        estimate in bytes that a message about a full disk shows. Where it `goes_on`, `fill` finds in the folder what an
        earlier process had done; hidden files there are its own notes. Returns True when this call did the work.

        Raises:
            DiskError: no room, or no leave to write. Nothing of the entry is left then but what is gone on with.
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
            _remember_made(self.folder, files)
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
        if problem := _file_damage(folder / name, facts, contents):
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


def _file_damage(path: Path, facts: Facts, contents: bool) -> str | None:
    if not path.is_file():
        return "is gone"
    if (size := path.stat().st_size) != facts.get("bytes"):
        return f"has {size} bytes instead of {facts.get('bytes')}"
    if contents and _content_hash(path) != facts.get("sha256"):
        return "does not hold what was written: its sha256 differs"
    return None


def _content_hash(path: Path) -> str:
    """sha256, read once a process, and of a large file once a day, as long as the file does not change."""
    status = path.stat()
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = (_remembered(path, status) if status.st_size >= LARGE else None) or file_sha256(path)
        if status.st_size >= LARGE:
            _remember(path, status, _hashes[key])
    return _hashes[key]


def _remembered(path: Path, status: os.stat_result) -> str | None:
    """What another process has found the hash of this very file to be, within a day; else None.

    No program can change a file and put back its ctime, so what this misses is a disk that rots meanwhile.
    """
    note = section(read_json(path.with_name(INTACT)) or {}, path.name)
    when, digest = note.get("when"), note.get("sha256")
    if note.get("file") != _stamp(status) or not isinstance(digest, str) or not isinstance(when, (int, float)):
        return None
    return digest if 0 <= time.time() - when < DAY else None


def _remember(path: Path, status: os.stat_result, digest: str) -> None:
    """Write a hash down beside its file, unless one is there that still counts, or the file is too young to tell."""
    if time.time() - max(status.st_ctime, status.st_mtime) < RACY or _remembered(path, status):
        return
    note = path.with_name(INTACT)
    facts = {**(read_json(note) or {}), path.name: {"file": _stamp(status), "sha256": digest, "when": time.time()}}
    temporary = note.with_name(f"{INTACT}.{os.getpid()}")
    with suppress(OSError):  # a cache that cannot be written to, a full disk: then it is hashed again
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(temporary, note)


def _remember_made(folder: Path, files: Facts) -> None:
    """Write down the hashes of large files just made, so that the next process need not read them."""
    for name, facts in files.items():
        if facts["bytes"] >= LARGE:
            status = (folder / name).stat()
            young = RACY - (time.time() - status.st_ctime)
            time.sleep(max(0.0, min(RACY, young)))  # it took longer to make than it takes to age
            _remember(folder / name, status, facts["sha256"])


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


_hashes: dict[tuple[str, int, int, int], str] = {}


def provenance() -> Facts:
    """When and where something was made."""
    return {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": socket.gethostname(), "pid": os.getpid()}


def remove_tree(path: Path) -> None:
    """Remove a file, a link (what it points to stays), or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


# ---------------------------------------------------------------------------------------------------------------- locks


class Lock:
    """One process at a time; the kernel frees it when that process dies. Who holds it stands in a note beside it."""

    def __init__(self, path: Path, title: str, command: str = "") -> None:
        self.title, self.lock, self.note = title, FileLock(path), path.with_name(f"{path.name}.holder")
        self.command = command or " ".join(sys.argv)

    @contextmanager
    def held(self, timeout: float = -1) -> Iterator[None]:
        """Wait for it, saying for whom, or for `timeout` seconds.

        Raises:
            Timeout: it is still taken.
        """
        self.acquire(timeout)
        try:
            yield
        finally:
            self.release()

    def acquire(self, timeout: float) -> None:
        """Take it, or raise what `held` says; a DiskError where the file system refuses to lock at all."""
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            if timeout == 0:
                raise
            warn(f"waiting for {self.title}, which {self.holder()} is making{self.way_out()}")
            self.lock.acquire(timeout=timeout)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise DiskError(cannot_lock(Path(self.lock.lock_file).parent, error.strerror)) from error
        with suppress(OSError):  # a full disk: then nobody is told
            self.note.write_text(json.dumps(redact({"command": self.command, **provenance()})), encoding="utf-8")

    def release(self) -> None:
        with suppress(OSError):
            self.note.unlink(missing_ok=True)
        self.lock.release()

    def is_free(self) -> bool:
        """Whether nobody holds it now; a lock that was never taken is free."""
        if not Path(self.lock.lock_file).exists():
            return True
        try:
            with FileLock(self.lock.lock_file, timeout=0):
                return True
        except Timeout:
            return False
        except OSError:  # a folder that cannot be written to: nobody works there
            return True

    def way_out(self) -> str:
        """What to do about a lock that outlives its process, where the kernel keeps none; else nothing."""
        path = Path(self.lock.lock_file)
        if lock_problem(path.parent) is None:
            return ""
        return f"\nThis disk keeps no locks, so a killed process leaves a file: if the process is gone, remove {path}"

    def holder(self) -> str:
        """`process 17 on host (rela train ...)`."""
        end = time.monotonic() + NOTE_SECONDS
        while not (note := read_json(self.note)) and time.monotonic() < end:
            time.sleep(0.02)
        note = note or {}
        return f"process {note.get('pid', '?')} on {note.get('host', '?')} ({note.get('command', 'command unknown')})"


def lock_problem(folder: Path) -> OSError | None:
    """Why the kernel locks no files in a folder; None where it does. ENOSYS: lock files stand in for its locks."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error if error.errno in (errno.ENOSYS, *NO_LOCKS) else None
    finally:
        os.close(descriptor)
    return None


def cannot_lock(folder: Path, why: str | None) -> str:
    """The message about a file system on which nobody can tell what is in use."""
    return f"{folder} cannot be locked ({why}); choose another disk: paths.outputs=FOLDER"


class RunLock(Lock):
    """Only one process works in a run folder; the second is told who the first is.

    Raises:
        RelaError: another process is at work there, named with its host and command.
    """

    def __init__(self, folder: Path, command: str = "") -> None:
        super().__init__(folder / ".lock", str(folder), command)
        self.folder = folder

    def __enter__(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.acquire(timeout=0)
            except Timeout:
                words = f"{self.folder} is in use by {self.holder()}. Wait for it, or stop it{self.way_out()}"
                raise RelaError(words) from None
        for leftover in self.folder.glob(".*.tmp"):  # of a killed process; we hold the lock
            leftover.unlink()

    def __exit__(self, *_: object) -> None:
        self.release()


# ----------------------------------------------------------------------------------------------------------------- disk


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
    """The message about a full disk."""
    wants = f"about {megabytes(needed)} needed" if needed else "more is needed"
    return (
        f"no room for {path}: {wants}, {megabytes(free_bytes(path))} free ({why})\n"
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


def free_bytes(path: Path) -> int:
    """Bytes free where `path` lies or would lie."""
    return shutil.disk_usage(existing(path)).free


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def megabytes(size: int) -> str:
    """1.2 GB, 34.5 MB, 6 kB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{math.ceil(size / 1000)} kB"


def warn(message: str) -> None:
    """One line on stderr; what a message of several lines has more is indented below it."""
    print(f"rela: {indented(redact(message))}", file=sys.stderr, flush=True)


@cache
def warn_once(message: str) -> None:
    """The same, but each message once a process."""
    warn(message)


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
