"""Parquet files as the Hugging Face hub lays them out: a column of encoded images, a column of class numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding import sizes
from rela_cli.data.decoding.images import DECODER, Blob, decode_all
from rela_cli.data.decoding.undecodable import Undecodable, left_out, warn_left_out
from rela_cli.data.files.splits import files_fingerprint, split_files
from rela_cli.data.label_column import LabelColumn, described_names
from rela_cli.errors import ConfigError, MissingError, RelaError


class Parquet(LabelColumn):
    """Files such as data/train-00000-of-00002.parquet, decoded into memory once.

    `hub` names a dataset of the Hugging Face hub, fetched below `root` when there are no files yet. Rows stand in
    the order of the files' names.
    """

    kind = "parquet"
    root_is = ", the folder with (or for) the .parquet files"

    def __init__(
        self,
        root: str | None,
        hub: str | None,
        image_column: str,
        label_column: str,
        image_size: int | None,
        on_error: str = "raise",
        max_errors: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.image_size = Path(self.needed(root)).expanduser(), image_size
        self.image_column, self.label_column = image_column, label_column
        self.on_error, self.max_errors = on_error, max_errors
        if hub and not any(self.root.rglob("*.parquet")):
            fetch_from_hub(hub, self.root)
        self.numbers = {}
        self.files = split_files(self.root, ".parquet")
        if not self.files["train"]:
            raise MissingError(f"no train*.parquet in dataset.root={root} (looked below {self.root.resolve()})")
        if not sum(self.rows[path] for path in self.files["train"]):
            raise MissingError(f"{self.files['train'][0]} holds no rows")
        self.settle_columns()

    def settle_columns(self) -> None:
        """The images' column is there; class names from the files' own description, else the numbers that occur."""
        columns = open_parquet(self.files["train"][0]).schema_arrow
        if self.image_column not in columns.names:
            raise ConfigError(
                f"{self.files['train'][0]} has no column {self.image_column!r} ({', '.join(columns.names)}); "
                "say dataset.image_column=NAME"
            )
        no_test = f"{self.root} has no test*.parquet or validation*.parquet; without one nothing is probed"
        named = lambda: described_names(columns.metadata or {}, self.label_column)  # noqa: E731
        self.read_classes(columns.names, named, no_test)

    def read_column(self, split: str) -> Array:
        return np.concatenate([read_parquet_column(path, self.label_column) for path in self.files[split]])

    def full_count(self, split: str) -> int:
        return sum(self.rows[path] for path in self.files[split]) - len(self.skipped.get(split, {}))

    @cached_property
    def rows(self) -> dict[Path, int]:
        """Rows of each file, from its footer."""
        return {path: open_parquet(path).metadata.num_rows for files in self.files.values() for path in files}

    @cached_property
    def skipped(self) -> Undecodable:  # type: ignore[override]
        if self.on_error == "raise":
            return {}
        named = {split: self.named(split) for split in self.files if self.files[split]}
        found = left_out(named, self.listing, self.cache)
        warn_left_out(found, self.max_errors)
        return found

    @cached_property
    def listing(self) -> str:
        """Names, sizes and times of the files."""
        return files_fingerprint(self.root, (path for split in self.files.values() for path in split))

    def identity_of_images(self) -> dict[str, Any]:
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        skipped = {split: sorted(rows) for split, rows in self.skipped.items() if rows}
        pixels = {"image_size": self.image_size, "decoder": DECODER}
        facts = {"dataset": "parquet", "files": self.listing, **columns, **pixels}
        return facts | ({"skipped": skipped} if skipped else {})

    def labels(self, split: str) -> Array | None:
        labels = super().labels(split)
        return None if labels is None else np.delete(labels, [int(row) for row in self.skipped.get(split, {})])

    def check_sizes(self) -> None:
        if self.image_size is None:
            sizes.check(islice(self.encoded_images("train"), sizes.SIZES_LOOKED_AT))

    def images(self, split: str, indices: Array) -> Array:
        wanted = set(map(int, indices))
        found = {row: blob for row, blob in enumerate(self.encoded_images(split)) if row in wanted}
        return decode_all([found[int(i)] for i in indices], self.image_size)

    def encoded_images(self, split: str) -> Iterator[Blob]:
        """The encoded images of a split, a few rows in memory at a time."""
        return (blob for row, blob in self.blobs(split) if str(row) not in self.skipped.get(split, {}))

    def named(self, split: str) -> Iterator[tuple[str, Blob]]:
        """The encoded images of a split, each with its row as its name."""
        return ((str(row), blob) for row, blob in self.blobs(split))

    def blobs(self, split: str) -> Iterator[tuple[int, Blob]]:
        """(row, encoded image) of a split, left-out rows too; rows are counted over all files."""
        cells = (cell for path in self.files[split] for cell in cells_of(path, self.image_column))
        return enumerate(as_blob(value, place, self.on_error) for place, value in cells)


def cells_of(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """The cells of one column, each with a name for messages."""
    file = open_parquet(path)
    with naming(path):
        batches = file.iter_batches(batch_size=256, columns=[column])
        for row, value in enumerate(value for batch in batches for value in batch.column(0).to_pylist()):
            yield f"{path} row {row}", value


def read_parquet_column(path: Path, column: str) -> Array:
    """One column of a file.

    Raises:
        MissingError: the file is broken, or lacks it.
    """
    file = open_parquet(path)
    with naming(path):
        return np.asarray(file.read([column])[column].to_numpy())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What pyarrow raises while it reads, as one error that names the file."""
    try:
        yield
    except RelaError:
        raise
    except Exception as error:  # it has exceptions of many kinds
        raise MissingError(f"{path} cannot be read as parquet: {error or type(error).__name__}") from error


def as_blob(value: Any, place: str, on_error: str = "raise") -> Blob:
    """The bytes of one cell: {bytes, path} as the hub has it, or bytes as they are; none at all may be skipped."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None and on_error == "skip":
        return Blob(place, b"")
    if not isinstance(data, bytes):
        raise MissingError(f"{place} holds no image bytes; the files must have the images inside")
    name = value.get("path") if isinstance(value, dict) else None
    return Blob(f"{place} ({name})" if name else place, data)


def open_parquet(path: Path) -> Any:
    """A parquet file.

    Raises:
        ConfigError: pyarrow is not installed. MissingError: the file is broken.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError("dataset=parquet needs pyarrow: pip install 'rela-cli[hf]'") from error
    with naming(path):
        return parquet.ParquetFile(path)


def fetch_from_hub(hub: str, root: Path) -> None:
    """All parquet files of a dataset on the hub.

    Raises:
        MissingError: they cannot be fetched.
    """
    from rela_cli.data.files.downloads import quick_to_fail

    way_out = f"put its .parquet files into dataset.root={root}"
    try:
        from huggingface_hub import constants, snapshot_download

        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        with quick_to_fail(constants.ENDPOINT):
            snapshot_download(hub, repo_type="dataset", allow_patterns="*.parquet", local_dir=str(root))
    except ImportError as error:
        raise ConfigError("dataset.hub needs huggingface_hub: pip install 'rela-cli[hf]'") from error
    except (OSError, ValueError) as error:
        raise MissingError(f"dataset.hub={hub} could not be fetched ({error}): {way_out}") from error
