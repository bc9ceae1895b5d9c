"""The targets of an efficient dataset as tensors: mapped where they lie, or put into the cache for a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rela_cli.data.efficient.folder import MAP, EfficientFolder
from rela_cli.errors import MissingError
from rela_cli.store.files import Facts
from rela_cli.store.row_file import DTYPES, RowFileWriter


def mapped_targets(folder: EfficientFolder, split: str) -> list[Tensor]:
    """The targets of each shard, (n, k) fp16 or fp32, mapped from disk: what is not used is not read."""
    return [safe_open(path, "pt").get_tensor("targets") for path in folder.shards(split)]


def mapped_views(folder: EfficientFolder) -> tuple[list[Tensor], Tensor]:
    """The light views of train: the targets of each shard, (n, K * k), mapped, and all boxes (N, K, 5) int16."""
    files = [safe_open(path, "pt") for path in folder.view_shards()]
    return [file.get_tensor("targets") for file in files], torch.cat([file.get_tensor("boxes") for file in files])


class ShardedTargets:
    """Targets (N, k) in several shards, of which the rows that are asked for are read."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(n,) int64 on the CPU -> (n, k), as they are stored."""
        found = torch.empty(len(rows), self.shape[1], dtype=self.parts[0].dtype)
        shards = torch.from_numpy(np.searchsorted(self.ends, rows.numpy(), side="right"))
        for number in shards.unique().tolist():
            here, first = shards == number, int(self.ends[number]) - len(self.parts[number])
            found[here] = self.parts[number][rows[here] - first]
        return found


def bring_view_targets(folder: EfficientFolder, place: Path) -> Facts:
    """What stage transport would have left of the light views, byte for byte; facts for its manifest.

    Raises:
        MissingError: as `write_targets`.
    """
    check_files(folder, {path.name for path in folder.view_shards()})
    parts, boxes = mapped_views(folder)
    write_rows(place / "train.safetensors", parts, len(boxes), (folder.views or {})["type"])
    save_file({"boxes": boxes}, place / "boxes.safetensors")
    return dict(folder.facts["made"]["view_targets"])


def bring_targets(folder: EfficientFolder, place: Path) -> Facts:
    """What stage transport would have left in an entry of the cache, byte for byte; facts for its manifest.

    Raises:
        MissingError: a file of the targets is not what was written; all such files are named.
    """
    check_files(folder, {MAP, *(path.name for split in folder.splits for path in folder.shards(split))})
    for split, facts in folder.splits.items():
        write_rows(place / f"{split}.safetensors", mapped_targets(folder, split), facts["samples"], facts["type"])
    shutil.copyfile(folder.root / MAP, place / "map.safetensors")
    return dict(folder.facts["made"]["targets"])


def check_files(folder: EfficientFolder, names: set[str]) -> None:
    """Raises MissingError where one of these files is not what was written."""
    if problems := list(folder.problems(contents=True, names=names)):
        raise MissingError("\n".join(problems))


def write_rows(path: Path, parts: list[Tensor], count: int, kind: str) -> None:
    """Targets of several shards as one file, in the type that they have there."""
    writer = RowFileWriter(path, "targets", count, DTYPES[kind])
    with writer:
        for part in parts:
            writer.add(part)
