"""A dataset that the library `datasets` has saved to disk: Arrow files, mapped, so that only what is asked for is read.

    dataset_dict.json            {"splits": ["train", "test"]}; without it the folder is one split
    train/state.json             which .arrow files, in order
    train/dataset_info.json      the columns, and the names of classes
    train/data-00000-of-00001.arrow

pyarrow reads them. `datasets` itself is needed only to fetch one from the hub.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import Blob
from rela_cli.data.decoding.undecodable import say_once
from rela_cli.data.encoded import ColumnDataset, borders_of, pieces_and_rows
from rela_cli.data.files.splits import PATTERNS, first_of_each_split
from rela_cli.data.label_column import LabelColumn, described_names
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.store.files import remove_tree

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


class HuggingFace(ColumnDataset, LabelColumn):
    """Rows in the order of the files that state.json names. `hub`: a dataset of the hub, saved to `root` first.

    Raises:
        ConfigError: no root given, or a column that does not hold what it should. MissingError: nothing is saved there,
        or a file of it is gone or damaged.
    """

    kind = "hf"
    root_is = ", the folder that save_to_disk has written (or is to)"

    def __init__(self, root: str | None, hub: str | None, **options: Any) -> None:
        super().__init__(root, **options)
        self.numbers = {}
        if hub and not is_saved(self.root):
            fetch_from_library(hub, self.root)
        self.files = {split: files_of(folder) for split, folder in split_folders(self.root).items()}
        self.files = {split: self.files.get(split, []) for split in PATTERNS}
        if not self.full_count("train"):
            raise MissingError(f"dataset.root={root} holds no train images")
        self.settle_columns()

    def settle_columns(self) -> None:
        """The images' column is there and holds encoded images; class names."""
        names = self.tables["train"].column_names
        if self.image_column not in names:
            raise ConfigError(
                f"{self.root} has no column {self.image_column!r} ({', '.join(names)}); say dataset.image_column=NAME"
            )
        for split, table in self.tables.items():
            is_there = self.image_column in table.column_names
            kind = table.field(self.image_column).type if is_there else "nothing"
            if not (is_there and holds_images(kind)):
                raise ConfigError(
                    f"column {self.image_column!r} of {split} in {self.root} holds {kind}, and no encoded images: save "
                    f"it as a column of datasets.Image()"
                )
        no_test = f"{self.root} has no split test or validation; without one nothing is probed"
        self.read_classes(names, self.described_names, no_test)

    def described_names(self) -> list[str] | None:
        """Class names as the saved description has them."""
        try:
            features = json.loads((self.files["train"][0].parent / INFO).read_text(encoding="utf-8"))["features"]
        except (OSError, ValueError, KeyError, TypeError):
            return described_names(self.tables["train"].schema.metadata or {}, self.label_column)
        info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        return described_names(info, self.label_column)

    # --------------------------------------------------------------------------------------------- the tables

    @cached_property
    def tables(self) -> dict[str, Any]:
        """The mapped table of each split."""
        return {split: mapped_table(files) for split, files in self.files.items() if files}

    @cached_property
    def chunks(self) -> dict[str, tuple[list[Any], Array]]:
        """The pieces of each split's column of images, and the row at which each piece begins."""
        found = {split: table.column(self.image_column).chunks for split, table in self.tables.items()}
        return {split: (pieces, borders_of(map(len, pieces))) for split, pieces in found.items()}

    def blobs(self, split: str, indices: Array) -> list[Blob]:
        chunks, borders = self.chunks[split]
        rows = np.asarray(indices, dtype=np.int64)
        places = zip(rows.tolist(), pieces_and_rows(borders, rows), strict=True)
        return [blob_of(chunks[piece][i], f"{self.root} {split} row {row}") for row, (piece, i) in places]

    # ------------------------------------------------------------------------------------------- the contract

    def full_count(self, split: str) -> int:
        return int(self.tables[split].num_rows) if split in self.tables else 0

    def read_column(self, split: str) -> Array:
        if self.label_column not in self.tables[split].column_names:
            raise ConfigError(f"{split} in {self.root} has no column {self.label_column!r}, which train has")
        return np.asarray(self.tables[split].column(self.label_column).to_numpy())


def holds_images(kind: Any) -> bool:
    """Whether a column's type is that of encoded images: bytes, or a struct with bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and holds_images(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def blob_of(cell: Any, place: str) -> Blob:
    """The bytes of a cell, which are read now.

    Raises:
        MissingError: it holds none.
    """
    value = cell["bytes"] if hasattr(cell, "keys") and cell.is_valid else cell
    data = value.as_py() if value.is_valid else None
    if data is None:
        raise MissingError(
            f"{place} holds no image bytes: save the dataset with its images inside (save_to_disk does it)"
        )
    return Blob(place, data)


def is_saved(root: Path) -> bool:
    """Whether a folder is what save_to_disk leaves."""
    return (root / DICT).is_file() or (root / STATE).is_file()


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of train, and that of test, else validation.

    Raises:
        MissingError: nothing is saved there, or no split to train on.
    """
    if not is_saved(root):
        raise MissingError(
            f"dataset.root={root} holds no {DICT} or {STATE}: say the folder that save_to_disk of the library "
            f"`datasets` has written; of .parquet files say dataset=parquet"
        )
    if not (root / DICT).is_file():
        return {"train": root}
    names = [str(name) for name in read_list(root / DICT, "splits")]
    found = first_of_each_split(root, map(Path, sorted(names, key=lambda name: not name.startswith("test"))), "split")
    if "train" not in found:
        raise MissingError(f"dataset.root={root} has no split train ({', '.join(names)})")
    return found


def files_of(folder: Path) -> list[Path]:
    """The Arrow files of a split, in order.

    Raises:
        MissingError: one is gone.
    """
    files = [folder / str(file["filename"]) for file in read_list(folder / STATE, "_data_files")]
    if gone := [path for path in files if not path.is_file()]:
        raise MissingError(f"{gone[0]} is gone, and {folder / STATE} names it: put it back")
    return files


def read_list(path: Path, key: str) -> list[Any]:
    """A list in a JSON file.

    Raises:
        MissingError: the file cannot be read, or has no such list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MissingError(f"{path} cannot be read: {error or type(error).__name__}; save the dataset again") from error
    if not isinstance(found, list):
        raise MissingError(f"{path} has no list {key}; save the dataset again")
    return found


def mapped_table(files: list[Path]) -> Any:
    """A table over some files, mapped.

    Raises:
        ConfigError: pyarrow is not installed. MissingError: a file is damaged.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("dataset=hf needs pyarrow: pip install 'rela-cli[hf]'") from error
    tables = []
    for path in files:
        try:
            tables.append(pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all())
        except Exception as error:  # it has exceptions of many kinds
            raise MissingError(f"{path} cannot be read as an Arrow file: {error}; copy it again") from error
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowInvalid as error:
        raise MissingError(f"the files of {files[0].parent} have different columns: {error}") from error


def fetch_from_library(hub: str, root: Path) -> None:
    """Save a dataset of the hub to `root`: whole, nothing is streamed.

    Raises:
        ConfigError: `datasets` is not installed. MissingError: it cannot be fetched.
    """
    from rela_cli.data.files.downloads import quick_to_fail

    try:
        import datasets
        from huggingface_hub import constants
    except ImportError as error:
        raise ConfigError(f"dataset.hub={hub} needs the library datasets: pip install 'rela-cli[datasets]'") from error
    half = root.with_name(f".{root.name}.tmp")
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        with quick_to_fail(constants.ENDPOINT):
            found = datasets.load_dataset(hub)
        remove_tree(half)
        found.save_to_disk(str(half))
    except RelaError:
        raise
    except Exception as error:  # the library and the hub have many kinds
        raise MissingError(
            f"dataset.hub={hub} could not be fetched ({error}): save it elsewhere with "
            f"datasets.load_dataset(...).save_to_disk(FOLDER) and say dataset.root=FOLDER"
        ) from error
    root.parent.mkdir(parents=True, exist_ok=True)
    half.replace(root)
    say_once(f"dataset.hub={hub} is saved in {root}; the library's own cache holds it, too, and may be removed")
