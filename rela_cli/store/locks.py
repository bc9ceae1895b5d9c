"""One process at a time: locks on cache entries and on run folders."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rela_cli.errors import DiskError, RelaError
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import provenance, read_json, remove_temporaries
from rela_cli.store.notices import warn
from rela_cli.store.secrets import redact

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # with ENOSYS filelock takes lock files instead

NOTE_SECONDS = 2.0  # how long a process that has just taken a lock may need to say who it is


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
        remove_temporaries(self.folder)

    def __exit__(self, *_: object) -> None:
        self.release()
