"""Datasets of encoded images: decoded into memory once, or on disk and decoded whenever they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array, Dataset
from rela_cli.data.decoding import sizes
from rela_cli.data.decoding.images import DECODER, Blob, Pixels, decode, decode_all, suited
from rela_cli.data.files.splits import files_fingerprint
from rela_cli.errors import ConfigError

MEMORY_LIMIT = 8_000_000_000  # bytes of decoded pixels, train and test; beyond that images stay on disk
BLOBS_AT_A_TIME = 1024  # images whose encoded bytes are in memory at a time
DECODE_MARGIN = 256 / 224  # side of what is decoded, to what is cropped from it, where images stay on disk


class EncodedDataset(Dataset):
    """Images are shown at `image_size` pixels and decoded to squares of `decode_size`; `on_disk` None goes by size.

    Raises:
        ConfigError: images would be decoded smaller than they are shown.
    """

    decodes_larger = False  # whether images are decoded larger than they are shown even where they are in memory

    def __init__(
        self, image_size: int | None, decode_size: int | None = None, on_disk: bool | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        self.image_size, self.wanted_decode_size, self.wants_disk = image_size, decode_size, on_disk
        if decode_size and (image_size is None or decode_size < image_size):
            raise ConfigError(f"dataset.decode_size={decode_size} must be at least dataset.image_size={image_size}")

    def encoded(self, split: str, index: int) -> Path | Blob:
        """One image as it is stored."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, Any]:
        """What decoding adds to the dataset's fingerprint."""
        facts = {"image_size": self.image_size, "decoder": DECODER}
        return facts | ({"decode_size": self.decode_size} if self.decode_size else {})

    def check_sizes(self) -> None:
        if self.decode_size is None:
            rows = {split: self.choose(split)[0] for split in self.splits if self.count(split)}
            sizes.check(
                self.encoded(split, int(r[i])) for split, r in rows.items() for i in sizes.evenly_spaced(len(r))
            )

    def images(self, split: str, indices: Array) -> Array:
        return decode_all([self.encoded(split, int(i)) for i in indices], self.decode_size)

    def image(self, split: str, index: int) -> Pixels:
        return decode(self.encoded(split, index), self.decode_size)

    @property
    def on_disk(self) -> bool:
        if self.wants_disk is not None:
            return self.wants_disk
        return self.decoded_bytes > MEMORY_LIMIT

    @property
    def side(self) -> int:
        return self.decode_size or self.first_side

    @cached_property
    def first_side(self) -> int:
        """Longer side of the first image, which speaks for all where no size was asked for."""
        return max(decode(self.encoded("train", 0), None).shape[:2])

    @cached_property
    def decoded_bytes(self) -> int:
        """What all pixels would take in memory."""
        side = self.image_size or self.first_side
        return 3 * side**2 * sum(self.count(split) for split in self.splits)

    @cached_property
    def decode_size(self) -> int | None:
        """Side of what is decoded: on disk 256/224 of what is shown, so that crops have pixels to choose from.

        Raises:
            ConfigError: images stay on disk and no `image_size` was given.
        """
        if self.wanted_decode_size or not (self.on_disk or self.decodes_larger):
            return self.wanted_decode_size or self.image_size
        if not self.image_size:
            raise ConfigError(
                f"dataset={self.kind} keeps its images on disk ({self.decoded_bytes / 1e9:.1f} GB decoded): say "
                f"dataset.image_size=SIZE, the side of what a network is shown, such as {suited(self.first_side)}"
            )
        return round(self.image_size * DECODE_MARGIN)


def borders_of(counts: Iterable[int]) -> Array:
    """Where each of several pieces begins, and where the last one ends: (pieces + 1,) int64."""
    return np.concatenate(([0], np.cumsum([*counts], dtype=np.int64)))


def pieces_and_rows(borders: Array, rows: Array) -> Iterator[tuple[int, int]]:
    """The piece that each row lies in, and its number there."""
    pieces = np.searchsorted(borders, rows, side="right") - 1
    return zip(pieces.tolist(), (rows - borders[pieces]).tolist(), strict=True)


class BlobDataset(EncodedDataset):
    """Encoded images that are parts of large files, each of which is read by itself."""

    def blobs(self, split: str, indices: Array) -> list[Blob]:
        """Some encoded images; nothing else is read."""
        raise NotImplementedError

    def encoded(self, split: str, index: int) -> Blob:
        return self.blobs(split, np.array([index]))[0]

    def images(self, split: str, indices: Array) -> Array:
        size = self.decode_size
        if size is None:
            return decode_all(self.blobs(split, indices), None)
        pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
        for start in range(0, len(indices), BLOBS_AT_A_TIME):
            part = slice(start, start + BLOBS_AT_A_TIME)
            pixels[part] = decode_all(self.blobs(split, indices[part]), size)
        return pixels

    def encoded_images(self, split: str) -> Iterator[Blob]:
        for start in range(0, self.full_count(split), BLOBS_AT_A_TIME):
            yield from self.blobs(split, np.arange(start, min(start + BLOBS_AT_A_TIME, self.full_count(split))))


class ColumnDataset(BlobDataset):
    """Blobs in one column of their files, with labels in another one."""

    files: dict[str, list[Path]]  # of each split, none where there is no such split

    def __init__(self, root: str | None, image_column: str, label_column: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(self.needed(root)).expanduser()
        self.image_column, self.label_column = image_column, label_column

    def identity_of_images(self) -> dict[str, Any]:
        files = (path for paths in self.files.values() for path in paths)
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return {"dataset": self.kind, "files": files_fingerprint(self.root, files), **columns, **self.sizes}
