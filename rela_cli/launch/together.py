"""What cells that run at once have to say: a cell's lines stand together, and each line of its stderr bears its number.

Descriptors are turned aside, so what libraries and other processes of the cell write goes the same way.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

READ_BYTES = 1 << 16  # bytes
LAST_LINES_SECONDS = 5.0  # to wait: a process that the cell has left behind may hold its stderr for ever


@contextmanager
def together(folder: Path, number: int) -> Iterator[None]:
    """Inside, stdout goes to `<number>.out` in the folder and is shown at the end; stderr at once, line by line."""
    real = [os.dup(1), os.dup(2)]
    reader, writer = os.pipe()
    label = threading.Thread(target=label_lines, args=(reader, real[1], f"cell {number + 1}: ".encode()))
    path = folder / f"{number}.out"
    try:
        aside = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        turn(aside, writer)
        for descriptor in (aside, writer):
            os.close(descriptor)
        label.start()
        yield
    finally:
        turn(*real)
        if label.ident is not None:
            label.join(LAST_LINES_SECONDS)
        with FileLock(folder / "said.lock"):
            copy(path, real[0])
        if not label.is_alive():
            for descriptor in (*real, reader):
                os.close(descriptor)


def turn(out: int, error: int) -> None:
    """Let stdout and stderr go there."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(error, 2)


def label_lines(reader: int, error: int, label: bytes) -> None:
    """Each line that comes, at once, with its label; carriage returns of progress bars begin lines, too."""
    left = b""
    while data := os.read(reader, READ_BYTES):
        *lines, left = (left + data.replace(b"\r", b"\n")).split(b"\n")
        write(error, b"".join(label + line + b"\n" for line in lines if line.strip()))
    if left.strip():
        write(error, label + left + b"\n")


def copy(path: Path, out: int) -> None:
    """All that a cell has said."""
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            write(out, data)


def write(descriptor: int, data: bytes) -> None:
    """All of it; where nobody reads any more, none of it."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        pass
