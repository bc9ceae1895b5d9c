"""Rows of a tensor on disk, written and read a block at a time, so that memory does not grow with their number.

The file is a safetensors file with one tensor (N, D), byte for byte what `safetensors.torch.save_file` would write.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor
from torch.linalg import vector_norm

HALF_MAX = 6e4  # fp16 ends at 65504; it changes targets by a cosine of 0.99999, bf16 by 0.9998
ALIGNMENT = 8  # of the data, by spaces behind the header
DTYPE_NAMES = {torch.float16: "F16", torch.float32: "F32"}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def halved(block: Tensor) -> Tensor:
    """Rows of any float type as fp16, if that can hold them all; else as they are."""
    if block.dtype is torch.float16 or (len(block) and vector_norm(block.float(), torch.inf) >= HALF_MAX):
        return block
    return block.half()


class RowFileWriter:
    """Takes `count` rows in blocks, in order; fp16 as long as that can hold them, all in fp32 from then on.

    With `dtype` fp32 all are in fp32 from the first on.

    Raises:
        ValueError: on leaving, when there were more or fewer rows.
    """

    def __init__(self, path: Path, name: str, count: int, dtype: torch.dtype = torch.float16) -> None:
        self.path, self.name, self.count = path, name, count
        self.dtype, self.width = dtype, 0
        self.sizes: list[int] = []  # rows of each block so far

    @property
    def written(self) -> int:
        """Rows so far."""
        return sum(self.sizes)

    def __enter__(self) -> RowFileWriter:
        self.file = self.path.open("w+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.file.close()
        if error is None and self.written != self.count:
            raise ValueError(f"{self.path} was to have {self.count} rows and got {self.written}")

    def add(self, block: Tensor) -> None:
        """(n, D) of any float type."""
        if not self.sizes:
            self.width = block.shape[1]
            self.begin()
        if self.dtype is torch.float16:
            block = halved(block)
            if block.dtype is not torch.float16:
                self.widen()
        self.write(block)
        self.sizes.append(len(block))

    def header(self) -> bytes:
        """The header of a file with all rows, in the present type."""
        size = self.count * self.width * self.dtype.itemsize
        entry = {"dtype": DTYPE_NAMES[self.dtype], "shape": [self.count, self.width], "data_offsets": [0, size]}
        header = json.dumps({self.name: entry}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % ALIGNMENT)
        return struct.pack("<Q", len(header)) + header

    def begin(self) -> None:
        """The file with its header and nothing else."""
        self.file.seek(0)
        self.file.write(self.header())
        self.file.truncate()
        self.start = self.file.tell()

    def content(self, block: Tensor) -> memoryview:
        """The bytes of a block in the present type."""
        return block.to("cpu", self.dtype).contiguous().numpy().data.cast("B")

    def write(self, block: Tensor) -> None:
        """Append a block."""
        self.file.write(self.content(block))

    def widen(self) -> None:
        """Write what is there again in fp32, beside it and block by block; a value has come that fp16 cannot hold."""
        wide = self.path.with_name(f".{self.path.name}.wide")
        with self.file as narrow:
            narrow.seek(self.start)
            self.dtype, self.file = torch.float32, wide.open("w+b")
            self.begin()
            for block in self.read_again(narrow):
                self.write(block)
        os.replace(wide, self.path)

    def read_again(self, narrow: BinaryIO) -> Iterator[Tensor]:
        """The blocks so far, from a file of fp16."""
        for rows in self.sizes:
            data = bytearray(narrow.read(rows * self.width * torch.float16.itemsize))
            yield torch.frombuffer(data, dtype=torch.float16).view(rows, self.width)


class RowFile:
    """The rows of such a file; a slice reads no more than itself.

    parts: each row is so many, side by side: of (N, parts * D) this is (N * parts, D).
    """

    def __init__(self, path: Path, name: str, parts: int = 1) -> None:
        self.slice, self.parts = safe_open(path, "pt").get_slice(name), parts
        rows, width = self.slice.get_shape()
        self.shape = (rows * parts, width // parts)
        self.dtype = next(kind for kind, name in DTYPE_NAMES.items() if name == self.slice.get_dtype())

    def __len__(self) -> int:
        return int(self.shape[0])

    def blocks(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """`size` rows at a time, as they were stored; of the blocks, one in `every`, from `first` on.

        Where rows have parts, all parts of so many rows as have no more than `size` of them.
        """
        size = max(1, size // self.parts)
        for start in range(first * size, len(self) // self.parts, every * size):
            yield self.slice[start : start + size].reshape(-1, self.shape[1])
