"""Where the samples of a tar shard lie, so that each of them can be read by itself.

A shard is read through once, header by header; the bytes of images are not.
Files of one sample stand together and share their path up to the first dot of the name, as WebDataset has it.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rela_cli.data.files.shard_index import ShardIndex
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import reason_of

TAR_BLOCK = 512  # bytes; a tar consists of such blocks, and ends with some of zeros
LONGEST_LABEL = 1 << 20  # bytes of a file with labels


@dataclass
class TarSample:
    """The files of one sample: by their extension where each begins, and how long it is."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    label: bytes | None = None


def samples_in(path: Path, label: str) -> Iterator[TarSample]:
    """The samples of a shard, in order, each with the content of its label file.

    Raises:
        MissingError: it is no tar, is cut short, or has bytes in its middle that are no header.
        ConfigError: the files of a sample do not stand together.
    """
    seen: set[str] = set()
    sample: TarSample | None = None
    with path.open("rb") as file:
        for member in members_of(file, path):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not dot or not stem or base.startswith("__"):
                continue  # no sample: hidden files, and notes of the writer
            key = folder + slash + stem
            if sample is None or key != sample.key:
                if sample:
                    yield sample
                if key in seen:
                    raise ConfigError(f"{path}: the files of sample {key} do not stand together: write the shard again")
                seen.add(key)
                sample = TarSample(key)
            sample.files[extension.lower()] = (member.offset_data, member.size)
            if extension.lower() == label and member.size <= LONGEST_LABEL:
                place = file.tell()
                file.seek(member.offset_data)
                sample.label = file.read(member.size)
                file.seek(place)
    if sample:
        yield sample


def members_of(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar. What `tarfile` takes for the end has to be the end.

    Raises:
        MissingError: it is no tar, is cut short, or has bytes in its middle that are no header.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined] # they would fill the memory
                if member.offset_data + (member.size if member.isreg() else 0) > size:
                    raise MissingError(
                        f"{path} is cut short: {member.name} goes beyond its {size} bytes; copy it again"
                    )
                if member.isreg():
                    yield member
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise MissingError(f"{path} cannot be read as a tar file: {reason_of(error)}; copy it again") from error
    file.seek(end)
    last = file.read(TAR_BLOCK)
    if not last:
        raise MissingError(f"{path} is cut short: the zeros that end a tar file are not there; copy it again")
    if any(last):
        raise MissingError(f"{path} is damaged: at byte {end} stands no header of a file; copy it again")


def index_of(path: Path, images: Sequence[str], label: str) -> ShardIndex:
    """The image of each sample, which has one of the extensions `images`, and its label.

    label: an extension, or `json.KEY` for a key of the sample's JSON file.

    Raises:
        MissingError, ConfigError: as `samples_in`; or a sample has no image, or its label cannot be read.
    """
    of_json = label.partition(".")[2] if label.startswith("json.") else ""
    start, length, name, labels = [], [], [], []
    for sample in samples_in(path, "json" if of_json else label):
        place = next((sample.files[extension] for extension in images if extension in sample.files), None)
        if place is None:
            has = ", ".join(sample.files)
            raise ConfigError(
                f"{path}: sample {sample.key} has no file .{' or .'.join(images)} (it has {has}); say "
                f"dataset.image_column=EXTENSION"
            )
        start.append(place[0])
        length.append(place[1])
        name.append(sample.key.encode("utf-8", "surrogateescape"))
        labels.append(label_in(sample, of_json, path))
    numbers = [np.array(column, dtype=np.int64) for column in (start, length)]
    return ShardIndex(*numbers, *(np.array(column, dtype=np.bytes_) for column in (name, labels)))


def label_in(sample: TarSample, of_json: str, path: Path) -> bytes:
    """A sample's label as text; empty where it has none."""
    if sample.label is None or not of_json:
        return (sample.label or b"").strip()
    try:
        found: Any = json.loads(sample.label)
        value = found.get(of_json) if isinstance(found, dict) else None
    except ValueError as error:
        raise ConfigError(f"{path}: the JSON file of sample {sample.key} cannot be read: {error}") from error
    return b"" if value is None else str(value).encode()
