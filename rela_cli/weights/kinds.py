"""What a file of weights is, from what is in it. Needs no torch, and takes no more memory than a file says it should.

Kinds: safetensors, pickle (torch.save), script (TorchScript), export (torch.export, .pt2), onnx, index (a list of
shards).
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rela_cli.errors import MissingError
from rela_cli.weights.onnx_file import external_files, is_onnx

POINTER = b"version https://git-lfs"
ZIP = b"PK\x03\x04"
HDF5 = b"\x89HDF\r\n\x1a\n"
TFLITE = b"TFL3"
HEADER_LIMIT = 100_000_000  # bytes: the library's own limit for a header, and ours for an index
ROOM = 64_000_000  # bytes that a file may unpack to however small it is
RATIO = 16  # and otherwise, times its size: torch does not compress, and networks in one file share what is the same
PIECE = 1_000_000  # bytes of a record that are read at a time
PROGRAM = ("archive_format", "serialized_exported_program.json", "models/")  # in every .pt2, of the version of torch

WAYS_OUT = (
    "Save the network's tensors as .safetensors under the names of a network that timm or torchvision has, or the "
    "network as a program with torch.export.save (.pt2)"
)


def kind_of(path: Path) -> str:
    """safetensors, pickle, script, export, index or onnx.

    Raises:
        MissingError: an empty or truncated file, a git-lfs pointer, a web page, or none of these; it says what it is.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise MissingError(f"{path} is empty")
    if head.startswith(POINTER):
        raise MissingError(f"{path} is a git-lfs pointer, not the file itself; `git lfs pull` fetches that")
    if head.lstrip().startswith(b"<"):
        raise MissingError(f"{path} is a web page, not a file of weights; a download that wanted a login, perhaps")
    if head.startswith(ZIP):
        return _zip_kind(path)
    if head[8:9] == b"{":
        return _safetensors_kind(path, int.from_bytes(head[:8], "little"))
    if head[:1] == b"\x80":
        return "pickle"
    if head.lstrip().startswith(b"{"):
        weight_map(path)
        return "index"
    if looks_onnx(path, head):
        if not is_onnx(path):
            raise MissingError(f"{path} is truncated or damaged: an ONNX model that ends too early, or none")
        return "onnx"
    if what := foreign_format(path, head):
        raise MissingError(f"{path} is {what}, which rela cannot read. {WAYS_OUT}")
    raise MissingError(f"{path} is not a file of weights (.safetensors, .pth, .pt, .bin, .pt2)")


def is_zip(path: Path) -> bool:
    """Whether it begins as zip archives do."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def looks_onnx(path: Path, head: bytes) -> bool:
    """Whether it is called an ONNX model, or begins as one: the version, then who has made it, or the graph."""
    return path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"))


def foreign_format(path: Path, head: bytes) -> str | None:
    """What other libraries' files are called."""
    if head.startswith(HDF5):
        return "an HDF5 file (Keras, h5py)"
    if head[4:8] == TFLITE:
        return "a TFLite model"
    if head.startswith(b"\x93NUMPY"):
        return "a numpy array (.npy)"
    return "a TensorFlow graph" if path.suffix in (".pb", ".tf", ".ckpt-00000-of-00001") else None


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise MissingError(f"{path} is truncated or damaged ({error})") from error
    ensure_plausible(path, sum(member.file_size for member in members))
    names = [member.filename for member in members]
    inner = [name.partition("/")[2] for name in names]
    if any(name.startswith("code/") for name in inner):
        return "script"
    if "data.pkl" in inner:
        return "pickle"
    if any(name.startswith(PROGRAM) for name in (*inner, *names)):
        return "export"
    raise MissingError(f"{path} is {_archive(names)}, which rela cannot read. {WAYS_OUT}")


def ensure_intact(path: Path) -> None:
    """torch writes checksums into its zip archives and does not look at them when it reads.

    Raises:
        MissingError: a record holds something else than was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as record:
                    while member.CRC and record.read(PIECE):  # torch can be told to write 0 in its place
                        pass
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, zlib.error) as error:
        raise MissingError(f"{path} is damaged: {error}") from error


def _archive(names: Sequence[str]) -> str:
    """What other zip files are called."""
    if names and all(name.endswith(".npy") for name in names):
        return "a file of numpy arrays (.npz)"
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        return "a Keras model"
    shown = ", ".join(ascii(name) for name in names[:3])
    return f"a zip archive of other things ({shown or 'it is empty'}{', ...' if len(names) > 3 else ''})"


def ensure_plausible(path: Path, size: int) -> None:
    """A file may unpack to so much, and no more.

    Raises:
        MissingError: it would take far more memory than it has bytes.
    """
    limit = RATIO * path.stat().st_size + ROOM
    if size > limit:
        raise MissingError(
            f"{path} has {path.stat().st_size / 1e6:.1f} MB and unpacks to {size / 1e6:.0f} MB; it is not read. "
            f"If it is right, load it yourself and save its tensors anew as .safetensors"
        )


def _safetensors_kind(path: Path, length: int) -> str:
    """Header and size have to agree."""
    size = path.stat().st_size
    if length > min(size - 8, HEADER_LIMIT):
        raise MissingError(f"{path} is truncated or damaged: its header would have {length} bytes, the file has {size}")
    with path.open("rb") as file:
        file.seek(8)
        header = file.read(length)
    try:
        tensors = [v for k, v in json.loads(header).items() if k != "__metadata__"]
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise MissingError(f"{path} is truncated or damaged: its header cannot be read") from error
    if end != size:
        raise MissingError(f"{path} is truncated or damaged: {size} bytes instead of {end}")
    return "safetensors"


# ---------------------------------------------------------------------------------------------------- several files


def weight_files(path: Path) -> list[Path]:
    """The file itself, or what lies beside it: the shards of an index, the tensors of an ONNX model; by name.

    Raises:
        MissingError: a shard that is not there, or is no file of tensors, by name.
    """
    if kind_of(path) == "onnx":
        return external_files(path) or [path]
    if kind_of(path) != "index":
        return [path]
    shards = [path.parent / name for name in sorted(set(weight_map(path).values()))]
    for shard in shards:
        if not shard.is_file():
            raise MissingError(f"{path} names {shard.name}, which is not beside it")
        if (kind := kind_of(shard)) not in ("safetensors", "pickle"):
            raise MissingError(f"{path} names {shard.name}, which is no file of tensors (it is of kind {kind})")
    return shards


def weight_map(path: Path) -> dict[str, str]:
    """Which file beside an index (model.safetensors.index.json) holds which tensor.

    Raises:
        MissingError: other JSON, or a name that leads out of the folder.
    """
    try:
        with path.open("rb") as file:
            found: Any = json.loads(file.read(HEADER_LIMIT))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MissingError(f"{path} is JSON, but no index of shards: it has no weight_map") from error
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise MissingError(f"{path} is no index of shards: its weight_map does not name a file for each tensor")
    if outside := next((name for name in found.values() if name == ".." or Path(name).name != name), None):
        raise MissingError(f"{path} names {outside!r}: shards have to lie beside it")
    return found
