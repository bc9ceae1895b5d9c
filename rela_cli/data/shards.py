"""Shards that hold images one behind the other, read by offsets: an epoch at budget 0.1 reads a tenth of the bytes.

Where each image lies is found once, and remembered in the cache.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import Blob
from rela_cli.data.encoded import ColumnDataset, borders_of, pieces_and_rows
from rela_cli.data.files.shard_index import ShardIndex, place_of, remember, remembered
from rela_cli.data.files.storage import LocalFolder, checked_length
from rela_cli.errors import ConfigError, MissingError
from rela_cli.machine.progress import with_progress
from rela_cli.store.files import fingerprint
from rela_cli.terminal import few


class IndexedShards(ColumnDataset):
    """The samples of all shards in the order of the shards' paths, then as they stand in the shard.

    Raises:
        ConfigError: no root given, or samples that do not fit together. MissingError: no shards, or a damaged one.
    """

    root_is = ", the folder with the shards"
    without_labels = ""  # what to say where there are none

    def __init__(self, root: str | None, **options: Any) -> None:
        super().__init__(root, **options)
        if "://" in str(root):
            raise ConfigError(f"dataset={self.kind} reads shards of this machine, not {root}: copy them to a folder")
        self.files = self.find()
        self.place = LocalFolder(str(self.root))
        if not self.full_count("train"):
            raise MissingError(f"{self.files['train'][0]} holds no samples")
        self.settle_classes()

    def find(self) -> dict[str, list[Path]]:
        """The shards of train, of which there are some, and of test.

        Raises:
            MissingError: there are none of train.
        """
        raise NotImplementedError

    def index_of(self, shard: Path) -> ShardIndex:
        """What a shard holds, which is read through for it.

        Raises:
            MissingError: it is damaged. ConfigError: a sample without what was asked for.
        """
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------- the index

    @cached_property
    def indices(self) -> dict[str, list[ShardIndex]]:
        """What each shard holds."""
        return {split: self.read(split) for split in self.files}

    def read(self, split: str) -> list[ShardIndex]:
        """The indices of a split's shards, from the cache or found now."""
        place = place_of(self.cache) if self.cache else None
        cache = [place / f"{self.name_of(path)}.npz" if place else None for path in self.files[split]]
        known = [remembered(path) for path in cache]
        todo = [number for number, index in enumerate(known) if index is None]
        for number in with_progress(todo, f"index {split} shards", len(todo)):
            known[number] = index = self.index_of(self.files[split][number])
            if path := cache[number]:
                remember(path, index, self.files[split][number])
        return [index for index in known if index is not None]

    def name_of(self, shard: Path) -> str:
        """The name that a shard's index is remembered under: by its path, its size and its time."""
        told = shard.stat()
        fields = {"kind": self.kind, "images": self.image_column, "label": self.label_column}
        return fingerprint({"path": str(shard.resolve()), "bytes": told.st_size, "at": told.st_mtime_ns, **fields})

    @cached_property
    def borders(self) -> dict[str, Array]:
        """The number of the first sample of each shard of a split, and of all: (shards + 1,) int64."""
        counts = {split: [len(index.start) for index in found] for split, found in self.indices.items()}
        return {split: borders_of(found) for split, found in counts.items()}

    def blobs(self, split: str, indices: Array) -> list[Blob]:
        wanted, names = [], []
        for shard, row in pieces_and_rows(self.borders[split], np.asarray(indices, dtype=np.int64)):
            index, path = self.indices[split][shard], self.files[split][shard]
            wanted.append((str(path.relative_to(self.root)), int(index.start[row]), int(index.length[row])))
            names.append(f"{path} sample {index.name[row].decode('utf-8', 'surrogateescape')}")
        found = zip(names, wanted, self.place.ranges(wanted), strict=True)
        return [Blob(name, checked_length(data, size, name)) for name, (_, _, size), data in found]

    # ------------------------------------------------------------------------------------------- the labels

    def settle_classes(self) -> None:
        """Class names: the numbers that occur, or the words; or why there will be no numbers.

        Raises:
            ConfigError: some samples have a label and others do not, or test has a class that train does not.
        """
        if not self.has_labels("train"):
            self.why_unprobed = f"no sample of {self.files['train'][0]} has a label {self.label_column}"
            self.why_unprobed += f"; for numbers say {self.without_labels}"
            return
        self.classes = class_names(self.words["train"])
        if not self.files["test"]:
            self.why_unprobed = f"{self.root} has no test or validation shards; without one nothing is probed"
        elif not self.has_labels("test"):
            self.why_unprobed = f"no sample of {self.files['test'][0]} has a label {self.label_column}"
        elif odd := sorted(set(self.words["test"].tolist()) - {name.encode() for name in self.classes}):
            raise ConfigError(f"test has classes that train does not have: {few([name.decode() for name in odd])}")

    @cached_property
    def words(self) -> dict[str, Array]:
        """The labels of each split as they stand there, (N,) bytes; of -1, which says that there is none, nothing."""
        found = {split: [index.label for index in indices] for split, indices in self.indices.items()}
        whole = {split: np.concatenate(labels) for split, labels in found.items() if labels}
        return {split: np.where(labels == b"-1", b"", labels) for split, labels in whole.items()}

    def has_labels(self, split: str) -> bool:
        """Whether the samples of a split have labels.

        Raises:
            ConfigError: some have and others do not.
        """
        labels = self.words[split]
        if 0 < (lacking := int((labels == b"").sum())) < len(labels):
            blob = self.blobs(split, np.flatnonzero(labels == b"")[:1])[0]
            raise ConfigError(f"{blob.name} has no label {self.label_column}, and neither have {lacking - 1} others")
        return len(labels) > 0 and not lacking

    def labels(self, split: str) -> Array | None:
        if self.classes is None or not self.files.get(split) or not self.has_labels(split):
            return None
        numbers = {name.encode(): number for number, name in enumerate(self.classes)}
        return np.array([numbers[word] for word in self.words[split].tolist()], dtype=np.int64)

    # ----------------------------------------------------------------------------------------- the contract

    def full_count(self, split: str) -> int:
        return int(self.borders[split][-1]) if split in self.files else 0


def class_names(words: Array) -> list[str]:
    """All numbers up to the largest one, where labels are numbers; else the words in their order."""
    found = sorted({word.decode() for word in words.tolist()})
    if all(word.isascii() and word.isdigit() and str(int(word)) == word for word in found):
        return [str(number) for number in range(max(map(int, found)) + 1)]
    return found
