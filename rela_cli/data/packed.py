"""Packs: the images of a dataset in a few large files, with an index that says where each one starts.

A pack is a folder (or an address, see files/storage.py) of

    pack.json            what is in it; written last, so a folder that has one is whole
    train-00000.bin ...  encoded images, one behind the other
    train.starts.npy     (N + 1,) int64: where image i starts in all .bin files of its split taken as one
    train.labels.npy     (N,) int32, where there are labels

The arrays are mapped and only the bytes of the images asked for are read. `rela data pack` makes them (packing.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from rela_cli.data.base import Array
from rela_cli.data.decoding.images import Blob, Pixels, decode
from rela_cli.data.encoded import BlobDataset, borders_of, pieces_and_rows
from rela_cli.data.files.storage import RemoteFolder, checked_length, storage_of
from rela_cli.errors import MissingError
from rela_cli.store.files import Facts, fingerprint

PACK_FORMAT = 1
READERS = 4  # batches that are asked for at the same time from afar


class Packed(BlobDataset):
    """A pack, read as a folder of its images would be.

    Raises:
        ConfigError: no root given. MissingError: no pack there, or one that is not whole.
    """

    kind = "packed"
    root_is = ", where `rela data pack` has written to"

    def __init__(self, root: str | None, **options: Any) -> None:
        super().__init__(**options)
        self.place = storage_of(self.needed(root))
        self.facts = read_pack(self.place)
        self.splits = tuple(self.facts["splits"])
        self.classes, self.why_unprobed = self.facts["classes"], self.facts["why_unprobed"]
        self.readers = ThreadPoolExecutor(READERS) if isinstance(self.place, RemoteFolder) else None

    # -------------------------------------------------------------------------------------------- the index

    def array(self, split: str, name: str) -> Array:
        """One of a split's arrays, mapped; of a pack that lies elsewhere the cache holds a copy."""
        cache = self.cache / "index" / self.hash if self.cache else None
        array: Array = np.load(self.place.local(f"{split}.{name}.npy", cache), mmap_mode="r")
        return array

    @cached_property
    def hash(self) -> str:
        """Over what is in the pack."""
        return fingerprint({"splits": self.facts["splits"], "classes": self.classes})

    @cached_property
    def starts(self) -> dict[str, Array]:
        return {split: self.array(split, "starts") for split in self.splits}

    @cached_property
    def borders(self) -> dict[str, Array]:
        """Where each file of a split starts, and where the last one ends."""
        sizes = {split: [shard["bytes"] for shard in facts["shards"]] for split, facts in self.facts["splits"].items()}
        return {split: borders_of(bytes_) for split, bytes_ in sizes.items()}

    def where(self, split: str, indices: Array) -> list[tuple[str, int, int]]:
        """File, first byte and length of some images."""
        starts, borders, shards = self.starts[split], self.borders[split], self.facts["splits"][split]["shards"]
        begin, length = starts[indices], starts[indices + 1] - starts[indices]
        found = zip(pieces_and_rows(borders, begin), length.tolist(), strict=True)
        return [(shards[min(number, len(shards) - 1)]["name"], first, size) for (number, first), size in found]

    def blobs(self, split: str, indices: Array) -> list[Blob]:
        """Some encoded images; nothing else is read."""
        wanted = self.where(split, np.asarray(indices, dtype=np.int64))
        names = [f"image {index} of {split} in {self.place}" for index in indices]
        found = zip(names, wanted, self.place.ranges(wanted), strict=True)
        return [Blob(name, checked_length(data, size, name)) for name, (_, _, size), data in found]

    # ------------------------------------------------------------------------------------------ the contract

    def full_count(self, split: str) -> int:
        return int(self.facts["splits"][split]["samples"]) if split in self.splits else 0

    def identity_of_images(self) -> dict[str, Any]:
        splits = {split: [facts["contents"], facts["labels"]] for split, facts in self.facts["splits"].items()}
        encoding = self.facts["encoding"]
        return {"dataset": "packed", "splits": splits, "classes": self.classes, "encoding": encoding, **self.sizes}

    def contents_hash(self, split: str) -> str | None:
        return str(self.facts["splits"][split]["contents"])

    def labels(self, split: str) -> Array | None:
        if split not in self.splits or self.facts["splits"][split]["labels"] is None:
            return None
        labels = self.array(split, "labels")
        if sha256(labels.astype("<i4").tobytes()).hexdigest() != self.facts["splits"][split]["labels"]:
            raise MissingError(
                f"{self.place}/{split}.labels.npy does not hold the labels that were packed: put back a copy, or pack "
                f"the dataset again"
            )
        return labels.astype(np.int64)

    def prefetch(self, split: str, indices: Array) -> Callable[[int], Pixels]:
        if self.readers is None:
            return super().prefetch(split, indices)
        blobs = self.readers.submit(self.blobs, split, indices)  # one request for the whole batch
        return lambda i: decode(blobs.result()[i], self.decode_size)


def read_pack(place: Any) -> Facts:
    """pack.json, if it and the files it names are whole as far as their sizes tell.

    Raises:
        MissingError: no pack, one that is still being written, one of another format, or a file that is not whole.
    """
    if not place.exists("pack.json"):
        half = (
            "a pack that is not finished: the same `rela data pack` goes on with it"
            if place.exists("packing.json")
            else "no pack: `rela data pack dataset=... --to FOLDER` makes one"
        )
        raise MissingError(f"dataset.root={place} holds {half}")
    try:
        facts: Facts = json.loads(place.read("pack.json"))
        files = [shard for split in facts["splits"].values() for shard in split["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MissingError(f"{place}/pack.json cannot be read: {error}; pack the dataset again") from error
    if facts.get("format") != PACK_FORMAT:
        raise MissingError(
            f"{place} is a pack of format {facts.get('format')}, and this rela reads format {PACK_FORMAT}"
        )
    for shard in files:
        if (size := place.size(shard["name"])) != shard["bytes"]:
            found = f"has {size} of {shard['bytes']} bytes" if size >= 0 else "is gone"
            raise MissingError(f"{place}/{shard['name']} {found}: put back a copy, or pack the dataset again")
    return facts
