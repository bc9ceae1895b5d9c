"""Embeddings as files: .npz, .npy, .csv and .parquet, each written block by block and put in place in one step."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rela_cli.errors import ConfigError
from rela_cli.store.files import Facts, write_atomic, write_filled

FeatureBlock = tuple[list[str], np.ndarray]  # names of n files, and their features (n, D) float32
WAY_OUT = "--to=FILE"


@dataclass(frozen=True)
class Embedding:
    """Names and features (count, width) of files, read anew as blocks each time, with facts on how they were made."""

    blocks: Callable[[], Iterator[FeatureBlock]]
    count: int
    width: int
    facts: Facts

    def names(self) -> Iterator[str]:
        """Every file, in the order of the rows; bytes of a name that are no UTF-8 as \\xe9."""
        return (unicode_name(name) for names, _ in self.blocks() for name in names)


def unicode_name(name: str) -> str:
    """A file's name as text that any encoding of Unicode can hold."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_npy(found: Embedding, path: Path) -> None:
    """The features (N, D) alone; the names stand in PATH.files.txt, one a line, in the same order."""
    names = path.with_name(f"{path.name}.files.txt")
    write_atomic(names, lambda place: write_lines(place, found.names()), WAY_OUT)
    write_filled(path, lambda file: write_rows(file, found), WAY_OUT)


def write_lines(path: Path, names: Iterable[str]) -> None:
    """A name on each line; an end of a line in a name is written as \\n."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(name.replace("\r", "\\r").replace("\n", "\\n") + "\n" for name in names)


def write_rows(file: BinaryIO, found: Embedding) -> None:
    """An array of the .npy format, (N, D) float32, row by row."""
    write_header(file, "<f4", (found.count, found.width))
    for _, values in found.blocks():
        file.write(np.ascontiguousarray(values, dtype="<f4").data)


def write_header(file: BinaryIO, kind: str, shape: tuple[int, ...]) -> None:
    """What a .npy file begins with."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def write_npz(found: Embedding, path: Path) -> None:
    """Arrays `features` (N, D), `files` (N,) and `metadata`, a JSON text; as numpy.savez would write them."""
    longest = max(map(len, found.names()), default=1)

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                write_rows(member, found)  # type: ignore[arg-type]
            with archive.open("files.npy", "w", force_zip64=True) as member:
                write_header(member, f"<U{longest}", (found.count,))  # type: ignore[arg-type]
                for names, _ in found.blocks():
                    member.write(np.array([unicode_name(name) for name in names], dtype=f"<U{longest}").tobytes())
            with archive.open("metadata.npy", "w") as member:
                np.save(member, np.array(json.dumps(found.facts)))  # type: ignore[arg-type]

    write_filled(path, fill, WAY_OUT)


def write_csv(found: Embedding, path: Path) -> None:
    """A line for each file: its name, then D numbers of nine digits, which give the same float32 again."""

    def fill(place: Path) -> None:
        with place.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", *(f"f{i}" for i in range(found.width))])
            for names, values in found.blocks():
                rows.writerows(
                    [unicode_name(name), *(f"{value:.9g}" for value in row)]
                    for name, row in zip(names, values.tolist(), strict=True)
                )

    write_atomic(path, fill, WAY_OUT)


def write_parquet(found: Embedding, path: Path) -> None:
    """Columns `file` and `embedding`, a list of D float32; the facts as JSON under the key `rela` of the schema."""
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.list_(pyarrow.float32(), found.width)
    fields = [pyarrow.field("file", pyarrow.string()), pyarrow.field("embedding", kind)]
    schema = pyarrow.schema(fields, metadata={"rela": json.dumps(found.facts)})

    def fill(place: Path) -> None:
        with parquet.ParquetWriter(place, schema) as writer:
            for names, values in found.blocks():
                flat = pyarrow.array(np.ascontiguousarray(values).ravel())
                embedding = pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)
                column = pyarrow.array([unicode_name(name) for name in names], pyarrow.string())
                writer.write_table(pyarrow.Table.from_arrays([column, embedding], schema=schema))

    write_atomic(path, fill, WAY_OUT)


WRITERS: dict[str, Callable[[Embedding, Path], None]] = {
    ".parquet": write_parquet,
    ".npz": write_npz,
    ".csv": write_csv,
    ".npy": write_npy,
}


def check_format(path: Path) -> None:
    """Before any work: the suffix is one that can be written, and its library is there.

    Raises:
        ConfigError: it is not.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(f"--to {path} must end in one of {', '.join(WRITERS)}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(f"--to {path} needs pyarrow: pip install 'rela-cli[hf]'; .npz, .npy and .csv need nothing")
