"""What each sample of a dataset is, whatever holds it: the name of its file, and the hash of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from rela_cli.data.base import Array, Dataset
from rela_cli.data.decoding.images import Blob
from rela_cli.machine.processors import each_in_threads

SAMPLES_AT_A_TIME = 1024  # samples in work at a time
Sample = tuple[str, bytes]  # path below the dataset's folder, or "" where it is no file; sha256


def has_files(dataset: Dataset, split: str) -> bool:
    """Whether samples are encoded images; else the dataset holds pixels."""
    return next(iter(dataset.encoded_images(split)), None) is not None


def samples(dataset: Dataset, split: str, rows: Array, first: int = 0) -> Iterator[Sample]:
    """Name and hash of the samples `rows` (sorted), in order, from the `first`-th of them on; a chunk in memory."""
    return (
        of_files(dataset, split, rows, first) if has_files(dataset, split) else of_pixels(dataset, split, rows, first)
    )


def of_files(dataset: Dataset, split: str, rows: Array, first: int) -> Iterator[Sample]:
    """The hash is that of the file's bytes."""
    root = Path(str(getattr(dataset, "root", ""))).expanduser()
    wanted = islice(dataset.encoded_rows(split, rows), first, None)
    for source, digest in each_in_threads(image_digest, wanted, SAMPLES_AT_A_TIME):
        yield name_of(source, root), digest


def of_pixels(dataset: Dataset, split: str, rows: Array, first: int) -> Iterator[Sample]:
    """The hash is that of the pixels, (H, W, 3) uint8."""
    for start in range(first, len(rows), SAMPLES_AT_A_TIME):
        for pixels in dataset.images(split, rows[start : start + SAMPLES_AT_A_TIME]):
            yield "", hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


def image_digest(source: Path | Blob) -> bytes:
    """sha256 of an encoded image."""
    return hashlib.sha256(source.data if isinstance(source, Blob) else source.read_bytes()).digest()


def name_of(source: Path | Blob, root: Path) -> str:
    """The path of a file below `root`; of one that lies elsewhere its folder and its name."""
    if isinstance(source, Blob):
        return ""
    return str(source.relative_to(root)) if source.is_relative_to(root) else str(Path(*source.parts[-2:]))
