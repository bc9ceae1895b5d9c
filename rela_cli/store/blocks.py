"""Rows on disk that a later process goes on with: beside their file lies a journal, a line for each whole block.

    train.safetensors     header, then the rows so far
    .train.blocks         what the blocks are of; then rows, type, sha256 and seconds of each block

A line is written behind its block. Nobody waits for the disk: what a power cut takes from the file, or turns in it, no
longer has its hash, and the rows from there on are made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rela_cli.store.faults import fault
from rela_cli.store.files import Facts, write_text
from rela_cli.store.notices import warn
from rela_cli.store.row_file import DTYPE_NAMES, DTYPES, RowFileWriter


class KeptWriter(RowFileWriter):
    """A RowFileWriter that goes on behind the last whole block of an earlier process; the same bytes in the end.

    `of` says what the blocks are of: those of other settings are not used. `circumstances` (device, threads)
    change rows by rounding only: where they differ, it is said.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        count: int,
        of: Facts,
        circumstances: Facts,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(path, name, count, dtype)
        self.first_dtype = dtype
        self.journal = path.with_name(f".{path.stem}.blocks")
        self.head = {"of": {"count": count, **of}, "circumstances": circumstances}
        self.lines: list[Facts] = []
        self.at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """What all blocks have cost, those of earlier processes too."""
        return float(sum(line["seconds"] for line in self.lines))

    @property
    def blocks(self) -> int:
        """How many are whole."""
        return len(self.lines)

    def __enter__(self) -> KeptWriter:
        self.lines = self.whole()
        if not self.lines:
            self.width, self.dtype = 0, self.first_dtype
            super().__enter__()
        else:
            self.width, self.dtype = self.lines[0]["width"], DTYPES[self.lines[0]["type"]]
            self.sizes = [line["rows"] for line in self.lines]
            self.file = self.path.open("r+b")
            self.start = len(self.header())
            self.file.seek(self.start + self.written * self.width * self.dtype.itemsize)
            self.file.truncate()
        self.note_all()
        return self

    def add(self, block: Tensor) -> None:
        """(n, D) of any float type; what it has cost is the time since the block before it."""
        dtype = self.dtype
        super().add(block)
        self.file.flush()
        fault("rows.before_line")
        now = time.perf_counter()
        self.lines.append(self.line(len(block), now - self.at))
        self.at = now
        if self.dtype is not dtype:
            self.note_all()
        else:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
        fault("rows.after_line")

    def write(self, block: Tensor) -> None:
        """Append a block, and remember what was written."""
        content = self.content(block)
        self.file.write(content)
        self.digest = hashlib.sha256(content).hexdigest()

    def line(self, rows: int, seconds: float) -> Facts:
        return {
            "rows": rows,
            "width": self.width,
            "type": DTYPE_NAMES[self.dtype],
            "sha256": self.digest,
            "seconds": seconds,
        }

    def read_again(self, narrow: BinaryIO) -> Iterator[Tensor]:
        """The blocks so far; each is written as fp32 before the next is asked for, and has another line then."""
        before, self.lines = self.lines, []
        for old, block in zip(before, super().read_again(narrow), strict=True):
            yield block
            self.lines.append(self.line(old["rows"], old["seconds"]))

    def note_all(self) -> None:
        """The whole journal anew."""
        text = "".join(json.dumps(line) + "\n" for line in (self.head, *self.lines))
        write_text(self.journal, text)

    # -------------------------------------------------------------------------------------- what an earlier one left

    def whole(self) -> list[Facts]:
        """The lines of the blocks, up to the first that is not what its line says."""
        head, *lines = read_lines(self.journal) or [{}]
        if not lines or not self.path.exists():
            return []
        if head.get("of") != self.head["of"]:
            old, new = facts_text(head.get("of")), facts_text(self.head["of"])
            warn(f"{self.path.name} was begun with {old}; it starts again with {new}")
            return []
        good = self.checked(lines)
        if len(good) < len(lines):
            warn(f"{self.path.name}, begun before, is damaged at block {len(good) + 1}; made again from there")
        now = self.head["circumstances"]
        if good and head.get("circumstances") != now:
            was, new = facts_text(head.get("circumstances")), facts_text(now)
            warn(f"{self.path.name} was begun with {was}, and goes on with {new}: rows may differ by rounding")
        return good

    def checked(self, lines: list[Facts]) -> list[Facts]:
        """The first lines that the file agrees with."""
        good: list[Facts] = []
        try:
            self.width, self.dtype = lines[0]["width"], DTYPES[lines[0]["type"]]
            with self.path.open("rb") as file:
                expected = self.header()
                while len(good) < len(lines) and (good or file.read(len(expected)) == expected):
                    if not self.agrees(file, lines[len(good)]):
                        break
                    good.append(lines[len(good)])
        except (OSError, KeyError, TypeError, ValueError, AttributeError):  # a journal of anything
            pass
        return good

    def agrees(self, file: BinaryIO, line: Facts) -> bool:
        """Whether the next rows of the file are those of the line."""
        size = line["rows"] * self.width * self.dtype.itemsize
        same = (line["width"], DTYPES[line["type"]]) == (self.width, self.dtype) and line["seconds"] >= 0
        return same and hashlib.sha256(file.read(size)).hexdigest() == line["sha256"]


def facts_text(facts: object) -> str:
    """`device cpu, threads 2`."""
    pairs = facts.items() if isinstance(facts, dict) else ()
    return ", ".join(f"{key} {value}" for key, value in pairs) or "something else"


def read_lines(path: Path) -> list[Facts]:
    """The JSON objects of a journal, up to the first line that is none."""
    found: list[Facts] = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            value = json.loads(text)
            if not isinstance(value, dict):
                break
            found.append(value)
    except (OSError, ValueError):
        pass
    return found
