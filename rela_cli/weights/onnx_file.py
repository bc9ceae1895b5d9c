"""What an ONNX file is, without onnx and without running it: whether it is one, and which files hold its weights.

ONNX is protobuf. Only its frame is read here: numbers of fields and lengths. Tensors may lie in files of their own
(external data), which belong to the model as much as the file itself does.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rela_cli.errors import ConfigError, MissingError

# Numbers of fields in onnx.proto3. Those that lead to tensors: a model's graph, a graph's nodes and tensors, ...
GRAPH, NODE, INITIALIZER = 7, 1, 5
ATTRIBUTE, TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS = 5, 5, 6, 10, 11
EXTERNAL, KEY, VALUE = 13, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
VERSION = 0x08  # the first byte: field 1, a number


def check_installed() -> None:
    """Raises ConfigError, with the line to type, when onnxruntime is not there."""
    if find_spec("onnxruntime") is None:
        raise ConfigError("prior=onnx needs onnxruntime: pip install 'rela-cli[onnx]'")


def is_onnx(path: Path) -> bool:
    """Whether a file is a model in ONNX's format, whole: a graph in a frame whose lengths add up."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data[0] == VERSION and any(number == GRAPH for number, _, _ in fields(data, 0, len(data)))
    except ValueError:  # empty, or no protobuf
        return False


def external_files(path: Path) -> list[Path]:
    """The files beside a model that hold tensors of it, each once, by name.

    Raises:
        MissingError: one is not there. ConfigError: one lies outside the model's folder.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = sorted({name for start, end in inner(data, 0, len(data), GRAPH) for name in in_graph(data, start, end)})
    home = path.parent.resolve()
    for name in names:
        if not (home / name).resolve().is_relative_to(home):
            raise ConfigError(f"{path} wants to read {name}, which lies outside its folder; keep its weights beside it")
        if not (home / name).is_file():
            raise MissingError(f"{path} keeps weights in {name}, which is not there: copy it beside the model")
    return [home / name for name in names]


def in_graph(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    """Names of files that the tensors of a graph lie in, at any depth."""
    for tensor in inner(data, start, end, INITIALIZER):
        yield from in_tensor(data, *tensor)
    for node in inner(data, start, end, NODE):
        for attribute in inner(data, *node, ATTRIBUTE):
            for number in (TENSOR, TENSORS):
                for tensor in inner(data, *attribute, number):
                    yield from in_tensor(data, *tensor)
            for number in (SUBGRAPH, SUBGRAPHS):
                for graph in inner(data, *attribute, number):
                    yield from in_graph(data, *graph)


def in_tensor(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    """The `location` among a tensor's pairs of external data."""
    for entry in inner(data, start, end, EXTERNAL):
        texts = {number: data[first:last].decode() for number, first, last in fields(data, *entry)}
        if texts.get(KEY) == "location":
            yield texts[VALUE]


def inner(data: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each field of a number, of those that have a length."""
    return ((first, last) for number, first, last in fields(data, start, end) if number == wanted)


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field between two places; a number without a length has begin = end.

    Raises:
        ValueError: this is no protobuf, or it is truncated.
    """
    while start < end:
        tag, start = varint(data, start, end)
        kind = tag & 7
        if kind == VARINT:
            _, start = varint(data, start, end)
            length = 0
        elif kind == BYTES:
            length, start = varint(data, start, end)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if start + length > end:
            raise ValueError("truncated")
        yield tag >> 3, start, start + length
        start += length


def varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the low ones first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
    raise ValueError("truncated")
