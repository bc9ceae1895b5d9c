"""A folder that a library saved a model into, such as transformers': which file in it has the weights."""

from __future__ import annotations

from pathlib import Path

from rela_cli.errors import MissingError

FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def file_in(path: Path) -> Path:
    """The path itself, or the file with the weights where it is a folder.

    Raises:
        MissingError: a folder without such a file, or with one that is split.
    """
    if not path.is_dir():
        return path
    there = [path / name for name in FILES if (path / name).is_file()]
    if there:
        return there[0]
    if split := sorted(path.glob("*.index.json")):
        raise MissingError(
            f"{path} holds weights split over several files ({split[0].name}); "
            f"save them as one: model.save_pretrained(FOLDER, max_shard_size='100GB')"
        )
    raise MissingError(f"{path} is a folder without {', '.join(FILES)}; say prior.weights=FILE")
