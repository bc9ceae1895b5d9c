"""Chunks as LitData's `optimize` writes them; its library is not needed to read them.

    train/index.json        which chunks, in order, and what a sample is made of
    train/chunk-0-0.bin     number of samples N, N + 1 offsets, then the samples; all numbers are uint32

A sample is the size of each of its fields, uint32, and then the fields one behind the other.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.files.shard_index import ShardIndex
from rela_cli.data.files.splits import PATTERNS, first_of_each_split
from rela_cli.data.shards import IndexedShards
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import Facts

INDEX = "index.json"
ENCODED = ("jpeg", "bytes", "file")  # fields that hold an image file
NUMBER = "int"  # a field of 8 bytes


class LitData(IndexedShards):
    """image_column, label_column: names of fields, or their numbers where samples are tuples.

    Raises:
        ConfigError: no root given, or fields that do not hold an encoded image and a whole number.
        MissingError: nothing that LitData has written, or a chunk that is gone or damaged.
    """

    kind = "litdata"
    without_labels = "dataset.label_column=FIELD"

    @cached_property
    def configs(self) -> dict[str, tuple[Path, Facts]]:
        """The folder of each split, and what its index.json says."""
        names = (path.parent.relative_to(self.root) for path in sorted(self.root.rglob(INDEX)))
        folders = first_of_each_split(self.root, names, "folder")
        return {split: (folder, read_index(folder / INDEX)) for split, folder in folders.items()}

    def find(self) -> dict[str, list[Path]]:
        if "train" not in self.configs:
            raise MissingError(f"dataset.root={self.root} holds no train/{INDEX}, which LitData's optimize writes")
        files = {
            split: [folder / str(chunk["filename"]) for chunk in facts["chunks"]]
            for split, (folder, facts) in self.configs.items()
        }
        if gone := [path for paths in files.values() for path in paths if not path.is_file()]:
            raise MissingError(f"{gone[0]} is gone, and its {INDEX} names it: put it back")
        return {split: files.get(split, []) for split in PATTERNS}

    def index_of(self, shard: Path) -> ShardIndex:
        facts = next(facts for folder, facts in self.configs.values() if folder == shard.parent)
        names, kinds = fields_of(facts, shard.parent / INDEX)
        image = field_number(self.image_column, names, kinds, ENCODED, "encoded image")
        label = None
        if self.label_column in names:
            label = field_number(self.label_column, names, kinds, (NUMBER,), "whole number")
        return read_chunk(shard, len(names), image, label)


def read_chunk(path: Path, fields: int, image: int, label: int | None) -> ShardIndex:
    """Where field `image` of each sample lies, and the number in field `label`; only the pages of sizes are read.

    Raises:
        MissingError: the chunk is not what its own numbers say.
    """
    data: Array = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    count = int(data[:4].view("<u4")[0]) if len(data) >= 8 else 0
    head = 4 * (count + 2)
    offsets = np.array(data[4:head]).view("<u4").astype(np.int64) if len(data) >= head else np.zeros(0, np.int64)
    whole = len(offsets) == count + 1 and offsets[0] == head and offsets[-1] == len(data)
    if not whole or (np.diff(offsets) < 4 * fields).any():
        raise MissingError(f"{path} is damaged, or no chunk of LitData: its {len(data)} bytes are not what it says")
    sizes = np.stack([data[at : at + 4 * fields].view("<u4") for at in offsets[:-1]]).astype(np.int64)
    if (sizes.sum(1) + 4 * fields != np.diff(offsets)).any():
        raise MissingError(f"{path} is damaged: the sizes of a sample's fields are not its own size; copy it again")
    starts = offsets[:-1, None] + 4 * fields + np.cumsum(sizes, axis=1) - sizes
    labels = [b""] * count
    if label is not None:
        numbers = [int(np.array(data[at : at + 8]).view("<i8")[0]) for at in starts[:, label]]
        labels = [str(number).encode() for number in numbers]
    names = np.array([str(number).encode() for number in range(count)], dtype=np.bytes_)
    return ShardIndex(starts[:, image], sizes[:, image], names, np.array(labels, dtype=np.bytes_))


def read_index(path: Path) -> Facts:
    """index.json.

    Raises:
        MissingError: it cannot be read. ConfigError: chunks that cannot be read by offsets.
    """
    try:
        facts: Facts = json.loads(path.read_text(encoding="utf-8"))
        config, _ = facts["config"], facts["chunks"][0]["filename"]
        odd = {key: config.get(key) for key in ("compression", "encryption", "ipc_compression") if config.get(key)}
        loader = config.get("item_loader") or "PyTreeLoader"
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MissingError(f"{path} is not what LitData's optimize writes: {error or type(error).__name__}") from error
    if odd or loader != "PyTreeLoader":
        what = ", ".join(f"{key} {value}" for key, value in odd.items()) or f"item_loader {loader}"
        raise ConfigError(f"{path} says {what}: such chunks cannot be read by offsets; optimize without it")
    return facts


def fields_of(facts: Facts, path: Path) -> tuple[list[str], list[str]]:
    """Names and kinds of a sample's fields.

    Raises:
        ConfigError: a sample is neither a flat dict nor a flat tuple or list of fields.
    """
    kinds = [str(kind) for kind in facts["config"]["data_format"]]
    try:
        spec: Any = json.loads(facts["config"]["data_spec"])[1]
        context, children = json.loads(spec["context"] or "null"), spec["children_spec"]
        flat = len(children) == len(kinds) and not any(child["children_spec"] for child in children)
    except (ValueError, KeyError, TypeError, IndexError):
        flat, context = len(kinds) == 1, None
    if not flat:
        raise ConfigError(f"{path}: a sample has to be a dict of fields such as image and label, without dicts inside")
    names = context if isinstance(context, list) and len(context) == len(kinds) else range(len(kinds))
    return [str(name) for name in names], kinds


def field_number(name: str, names: list[str], kinds: list[str], wanted: tuple[str, ...], what: str) -> int:
    """The number of a field; only that of images may have a name that is not there.

    Raises:
        ConfigError: there is none of that name, or it holds something else.
    """
    if name not in names:
        raise ConfigError(f"samples have no field {name!r} ({', '.join(names)}); say dataset.image_column=NAME")
    kind = kinds[names.index(name)]
    if kind.partition(":")[0] not in wanted:
        raise ConfigError(f"field {name!r} holds {kind}, and no {what}")
    return names.index(name)
