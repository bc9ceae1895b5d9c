"""Where the files of a pack lie: in a folder, or below any address that fsspec knows (s3://, gs://, hf://, memory://)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import write_atomic, write_filled

KEPT_OPEN = 512  # files; where there are more, each is opened for every read
ByteRange = tuple[str, int, int]  # file, first byte, bytes


class LocalFolder:
    """A folder of this machine; needs no fsspec."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser()
        self.files: dict[str, int] = {}
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.root)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def size(self, name: str) -> int:
        """Bytes of a file; -1 where it is not there."""
        return (self.root / name).stat().st_size if self.exists(name) else -1

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def local(self, name: str, cache: Path | None) -> Path:
        """The file as one that can be mapped."""
        return self.root / name

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Let `fill` write a file; it appears whole or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_filled(self.root / name, fill)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def ranges(self, wanted: Sequence[ByteRange]) -> list[bytes]:
        """Some bytes of some files, and no others; called from several threads."""
        return [self.range(*each) for each in wanted]

    def range(self, name: str, start: int, length: int) -> bytes:
        if len(self.files) >= KEPT_OPEN and name not in self.files:
            with (self.root / name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, start)
        return os.pread(self.opened(name), length, start)

    def opened(self, name: str) -> int:
        """A descriptor that stays open. The kernel is told not to read ahead: samples are drawn at random."""
        with self.lock:
            if name not in self.files:
                self.files[name] = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self.files[name], 0, 0, os.POSIX_FADV_RANDOM)
            return self.files[name]

    def __del__(self) -> None:
        for descriptor in self.files.values():
            os.close(descriptor)


class RemoteFolder:
    """Below an address that fsspec knows.

    Stores show an object once it is written; where one shows it earlier, the pack's manifest, which comes last, says
    what is whole.
    """

    def __init__(self, root: str) -> None:
        try:
            from fsspec.core import url_to_fs

            self.system, self.root = url_to_fs(root)
        except ImportError as error:
            needs = f"pip install 'rela-cli[remote]' ({error})"
            raise ConfigError(f"{root} is not a folder of this machine; reading it needs {needs}") from error
        except ValueError as error:
            raise ConfigError(f"{root} is no address that fsspec knows: {error}") from error
        self.address = root

    def __str__(self) -> str:
        return self.address

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self.system.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Bytes of a file; -1 where it is not there."""
        try:
            return int(self.system.info(self.path(name))["size"])
        except FileNotFoundError:
            return -1

    def read(self, name: str) -> bytes:
        return bytes(self.system.cat_file(self.path(name)))

    def local(self, name: str, cache: Path | None) -> Path:
        """A copy in `cache` that can be mapped.

        Raises:
            ConfigError: there is no cache.
        """
        if cache is None:
            raise ConfigError(f"{self} needs a cache folder for its index")
        path = cache / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda temporary: self.system.get_file(self.path(name), str(temporary)))
        return path

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Let `fill` write a file."""
        self.system.makedirs(self.root, exist_ok=True)
        with self.system.open(self.path(name), "wb") as file:
            fill(file)

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.system.rm_file(self.path(name))

    def ranges(self, wanted: Sequence[ByteRange]) -> list[bytes]:
        """Some bytes of some files, all asked for at once."""
        paths, starts, ends = zip(*((self.path(n), start, start + size) for n, start, size in wanted), strict=True)
        found: list[Any] = self.system.cat_ranges(list(paths), list(starts), list(ends), on_error="raise")
        return [bytes(data) for data in found]


Storage = LocalFolder | RemoteFolder


def storage_of(root: str) -> Storage:
    """The place that a root names."""
    return RemoteFolder(root) if "://" in root else LocalFolder(root)


def checked_length(data: bytes, length: int, name: str) -> bytes:
    """The bytes, if they are all there.

    Raises:
        MissingError: a file is shorter than its index says.
    """
    if len(data) != length:
        raise MissingError(f"{name} holds {len(data)} of {length} bytes: the pack was cut short; pack it again")
    return data
