"""A folder that a library saved a model into, such as transformers': which file in it has the weights."""

from __future__ import annotations

from pathlib import Path

from rela_cli.errors import MissingError

WEIGHT_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def file_in(path: Path) -> Path:
    """The path itself, or the file with the weights, or the index of its shards, where it is a folder.

    Raises:
        MissingError: a folder without such a file.
    """
    if not path.is_dir():
        return path
    there = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if there:
        return there[0]
    if split := sorted(path.glob("*.index.json")):  # model.safetensors.index.json before pytorch_model.bin.index.json
        return split[0]
    raise MissingError(f"{path} is a folder without {', '.join(WEIGHT_FILES)}; say prior.weights=FILE")
