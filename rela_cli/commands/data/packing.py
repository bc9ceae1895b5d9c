"""Makes a pack of a dataset (packed.py says what that is): as its images are stored, or encoded anew on request.

Files are written one after another, each with the lengths and hashes of its images beside it, so that a pack that was
interrupted goes on at its last whole file. `pack.json` comes last.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from rela_cli.data.base import Array, Dataset
from rela_cli.data.decoding.images import Blob, decode
from rela_cli.data.encoded import BLOBS_AT_A_TIME
from rela_cli.data.files.storage import Storage
from rela_cli.data.packed import PACK_FORMAT
from rela_cli.errors import RelaError
from rela_cli.machine.processors import each_in_threads
from rela_cli.machine.progress import with_progress
from rela_cli.store.files import Facts, check_same, provenance

PART = np.dtype([("length", "<i8"), ("digest", "u1", 32)])  # of one image
PACK_THREADS = 16  # reading waits for the disk, encoding works outside the interpreter's lock
IMAGES_AHEAD = 64  # images under way
ROWS_AT_A_TIME = 1 << 20  # rows of an array that are written at a time


@dataclass(frozen=True)
class Encoding:
    """How images are stored: as they were, or as JPEGs of a square size and a quality."""

    size: int | None = None
    quality: int | None = None

    @property
    def facts(self) -> Facts | None:
        """What the fingerprint of the pack says of it; None for images as they were."""
        if self.size is None and self.quality is None:
            return None
        return {"format": "jpeg", "size": self.size, "quality": self.quality or 90}

    def __call__(self, source: Path | Blob) -> bytes:
        """The bytes to be stored.

        Raises:
            MissingError: an image that has to be decoded for it cannot be.
        """
        if self.facts is None:
            return source.data if isinstance(source, Blob) else source.read_bytes()
        file = BytesIO()
        Image.fromarray(decode(source, self.size)).save(file, "JPEG", quality=self.facts["quality"], subsampling=0)
        return file.getvalue()


@dataclass
class Packer:
    """One pack in the making."""

    dataset: Dataset
    place: Storage
    encoding: Encoding
    shard_bytes: int
    made: dict[str, list[Facts]] = field(default_factory=dict)  # split -> its files

    def run(self) -> Facts:
        """Write what is missing; the pack's facts.

        Raises:
            RelaError: another pack lies there.
        """
        if self.place.exists("pack.json"):
            facts: Facts = json.loads(self.place.read("pack.json"))
            self.compare(facts["made_of"])
            return facts
        if self.place.exists("packing.json"):
            self.compare(json.loads(self.place.read("packing.json")))
        else:
            self.note("packing.json", self.made_of)
        splits = {split: self.pack(split) for split in self.dataset.splits if self.dataset.count(split)}
        facts = {
            "format": PACK_FORMAT,
            "splits": splits,
            "classes": self.dataset.classes,
            "encoding": self.encoding.facts,
        }
        facts |= {"why_unprobed": self.dataset.why_unprobed, "made_of": self.made_of, **provenance()}
        self.note("pack.json", facts)
        self.tidy()
        return facts

    @property
    def made_of(self) -> Facts:
        """What has to be the same for an unfinished pack to be continued."""
        identity: Facts = json.loads(json.dumps(self.dataset.identity))
        return {"dataset": identity, "encoding": self.encoding.facts, "shard_bytes": self.shard_bytes}

    def compare(self, theirs: Facts) -> None:
        """The pack that lies there is this one."""
        check_same(theirs, self.made_of, f"{self.place} holds another pack")

    def note(self, name: str, facts: Facts) -> None:
        text = (json.dumps(facts, indent=1) + "\n").encode()
        self.place.write(name, lambda file: file.write(text))

    # ------------------------------------------------------------------------------------------- one split

    def pack(self, split: str) -> Facts:
        """Files, index and labels of a split."""
        indices, labels = self.dataset.choose(split)
        shards = self.made[split] = list(self.there(split))
        done = sum(shard["samples"] for shard in shards)
        samples = islice(encoded_samples(self.dataset, split, indices), done, None)
        stored = (data for _, data in each_in_threads(self.encoding, samples, IMAGES_AHEAD, PACK_THREADS))
        images = with_progress(stored, f"pack {split}", len(indices), done)
        while done < len(indices):
            shards.append(self.write_shard(f"{split}-{len(shards):05d}", images))
            done += shards[-1]["samples"]
            if not shards[-1]["samples"]:
                raise RelaError(f"{split} has lost images while it was packed: {done} of {len(indices)} are left")
        contents = self.write_index(split, shards, len(indices))
        numbers = None if labels is None else self.write_labels(split, labels)
        facts = [{key: shard[key] for key in ("name", "bytes")} for shard in shards]
        return {"samples": len(indices), "contents": contents, "labels": numbers, "shards": facts}

    def there(self, split: str) -> Iterator[Facts]:
        """The files that an earlier call has finished."""
        for number in count():
            stem = f"{split}-{number:05d}"
            if not self.place.exists(f"{stem}.part.npy"):
                return
            shard = shard_of(stem, self.read_part(stem))
            if self.place.size(shard["name"]) != shard["bytes"]:
                return
            yield shard

    def write_shard(self, stem: str, images: Iterator[bytes]) -> Facts:
        """One file of at least `shard_bytes`, if there are as many, then what is in it."""
        lengths, digests = array("q"), bytearray()

        def fill(file: BinaryIO) -> None:
            written = 0
            while written < self.shard_bytes and (data := next(images, None)) is not None:
                written += file.write(data)
                lengths.append(len(data))
                digests.extend(hashlib.sha256(data).digest())

        self.place.write(f"{stem}.bin", fill)
        part = np.empty(len(lengths), dtype=PART)
        part["length"], part["digest"] = lengths, np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
        self.place.write(f"{stem}.part.npy", lambda file: np.save(file, part))
        return shard_of(stem, part)

    def read_part(self, stem: str) -> Array:
        part: Array = np.load(BytesIO(self.place.read(f"{stem}.part.npy")))
        return part

    def write_index(self, split: str, shards: list[Facts], samples: int) -> str:
        """Where images start, from the parts; the hash over the hashes of all images."""
        contents = hashlib.sha256()

        def blocks() -> Iterator[Array]:
            end = np.zeros(1, dtype=np.int64)
            yield end
            for shard in shards:
                part = self.read_part(shard["stem"])
                contents.update(part["digest"].tobytes())
                starts = end[-1] + np.cumsum(part["length"])
                yield starts
                end = starts[-1:]

        self.place.write(f"{split}.starts.npy", lambda file: write_array(file, blocks(), samples + 1, "<i8"))
        return contents.hexdigest()

    def write_labels(self, split: str, labels: Array) -> str:
        """The labels; their hash."""
        contents = hashlib.sha256()

        def blocks() -> Iterator[Array]:
            for start in range(0, len(labels), ROWS_AT_A_TIME):
                block = labels[start : start + ROWS_AT_A_TIME].astype("<i4")
                contents.update(block.tobytes())
                yield block

        self.place.write(f"{split}.labels.npy", lambda file: write_array(file, blocks(), len(labels), "<i4"))
        return contents.hexdigest()

    def tidy(self) -> None:
        """What only an interrupted pack needs."""
        for shards in self.made.values():
            for shard in shards:
                self.place.remove(f"{shard['stem']}.part.npy")
        self.place.remove("packing.json")


def shard_of(stem: str, part: Array) -> Facts:
    """The facts of one file."""
    return {"name": f"{stem}.bin", "stem": stem, "bytes": int(part["length"].sum()), "samples": len(part)}


def encoded_samples(dataset: Dataset, split: str, indices: Array) -> Iterator[Path | Blob]:
    """The samples of a split that the limits leave, encoded; pixels become PNGs, which lose nothing."""
    images = dataset.encoded_rows(split, indices)
    first = next(images, None)
    if first is None:
        return pngs(dataset, split, indices)
    return chain((first,), images)


def pngs(dataset: Dataset, split: str, indices: Array) -> Iterator[Blob]:
    """Pixels as PNGs, some in memory at a time."""
    for start in range(0, len(indices), BLOBS_AT_A_TIME):
        part = indices[start : start + BLOBS_AT_A_TIME]
        for index, pixels in zip(part, dataset.images(split, part), strict=True):
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            yield Blob(f"image {index} of {split}", file.getvalue())


def write_array(file: BinaryIO, blocks: Iterable[Array], length: int, kind: str) -> None:
    """A .npy file of `length` numbers, block by block."""
    header = {"descr": kind, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype=kind).tobytes())
