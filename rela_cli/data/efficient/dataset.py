"""`dataset=efficient`: the images and labels behind an efficient dataset; its targets are in targets.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import HOMES, Part
from rela_cli.data.base import Array, Dataset
from rela_cli.data.decoding.images import Blob, Pixels
from rela_cli.data.efficient.contents import samples
from rela_cli.data.efficient.folder import IMAGES, EfficientFolder
from rela_cli.data.packed import Packed
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import Facts
from rela_cli.store.notices import warn_once

COMPARED = 256  # images of a split whose contents are looked at where the dataset's own name for them has changed


class Efficient(Dataset):
    """The samples that were converted, numbered from 0 in the order of the targets.

    Images come out of the folder, or out of the dataset that was converted: where that lies is written down
    (images=link), or `images` says it. Only they need the original; labels and targets do not.

    Raises:
        ConfigError: no root given. MissingError: no efficient dataset there, or one that is not whole.
    """

    kind = "efficient"
    root_is = ", which `rela convert` has written"

    def __init__(self, root: str | None, images: str | None = None, cache: Path | None = None) -> None:
        self.folder = EfficientFolder(self.needed(root))
        facts = self.told = dict(self.folder.facts["dataset"])
        super().__init__(None, None, 0, facts["flip"], cache)
        self.splits = tuple(self.folder.splits)
        self.classes, self.why_unprobed = facts["classes"], facts["why_unprobed"]
        self.image_size, self.given = facts["image_size"], images
        self.known_rows: dict[str, Array] = {}

    # ------------------------------------------------------------------------------------- what the folder says

    @property
    def on_disk(self) -> bool:
        return bool(self.told["on_disk"])

    @property
    def side(self) -> int | None:
        side: int | None = self.told["side"]
        return side

    @property
    def identity(self) -> dict[str, Any]:
        """That of the dataset that was converted: the same images have the same name, wherever they come from.

        Of images on disk the cache holds row numbers, and with limits those of the original are others than ours.
        """
        spec = {key: value for key, value in self.folder.spec["images"].items() if key != "version"}
        is_other = self.on_disk and any(self.told["limits"].values())
        return spec | ({"numbered": "as converted"} if is_other else {})

    def full_count(self, split: str) -> int:
        return int(self.folder.splits[split]["samples"]) if split in self.folder.splits else 0

    def labels(self, split: str) -> Array | None:
        labelled = split in self.folder.splits and self.folder.splits[split]["labels"]
        return self.folder.column(split, "label") if labelled else None

    # ----------------------------------------------------------------------------------------------- the images

    @property
    def has_copies(self) -> bool:
        """Whether the folder holds the images itself."""
        return self.folder.facts["images"] == "copy" and self.given is None

    @cached_property
    def inner(self) -> Dataset:
        """Where images come from.

        Raises:
            MissingError: they are not there, or are others than those that were converted.
        """
        if self.has_copies:
            own: dict[str, Any] = {key: self.told[key] for key in ("image_size", "decode_size")}
            common: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": self.flip}
            return Packed(str(self.folder.root / IMAGES), on_disk=self.on_disk, **own, **common, cache=self.cache)
        dataset: Dataset = instantiate(self.original, cache=self.cache)
        for split in self.splits:
            self.compare(dataset, split)
        return dataset

    @property
    def original(self) -> Part:
        """The dataset that was converted, at the place where it is now.

        Raises:
            MissingError: nobody says where that is. ConfigError: it is of a class from elsewhere.
        """
        options, target = dict(self.told["options"]), str(self.told["target"])
        if not target.startswith(HOMES["dataset"]):
            raise ConfigError(
                f"{self.folder.root} was made of {target}, which is not part of rela, and holds no images itself: "
                f"convert it with --images copy"
            )
        if self.given is not None:
            options["root"] = self.given
        if "root" in options and options["root"] is None:
            raise MissingError(
                f"{self.folder.root} holds no images: say dataset.images=FOLDER, where those of "
                f"{self.told['called']} (dataset={self.told['name']}) lie, or convert with --images copy"
            )
        return Part(self.told["name"], target, options)

    def compare(self, dataset: Dataset, split: str) -> None:
        """The images are those that were converted: by the dataset's own word, else by the first ones' contents."""
        rows, whole = self.rows(split), self.told["full_counts"][split]
        where = self.given or self.told["options"].get("root") or self.told["name"]
        if dataset.full_count(split) != whole:
            found = f"{dataset.full_count(split)} {split} images, and {whole} were there when it was converted"
            raise MissingError(f"{where} has {found}: put them back, or convert the dataset again")
        if json.loads(json.dumps(dataset.identity_of_images(), default=list)) == self.told["source"]:
            return
        few = rows[:COMPARED]
        wanted = self.folder.column(split, "sha256")
        for i, (name, digest) in enumerate(samples(dataset, split, few)):
            if digest != wanted[i].tobytes():
                raise MissingError(
                    f"{where} holds other images than those that were converted: {name or f'{split} {rows[i]}'} "
                    f"differs. Put them back, or convert the dataset again"
                )
        warn_once(
            f"{where} has changed since it was converted (its times or its place); the first {len(few)} {split} "
            f"images hold the same. `rela data check {self.folder.root}` compares all"
        )

    def rows(self, split: str) -> Array:
        """The number of each sample in the dataset that images come from."""
        if split not in self.known_rows:
            self.known_rows[split] = self.folder.column(split, "row")
        return self.known_rows[split]

    def theirs(self, split: str, indices: Array) -> Array:
        """Our numbers as those of `inner`."""
        return np.asarray(indices) if self.has_copies else self.rows(split)[np.asarray(indices)]

    def images(self, split: str, indices: Array) -> Array:
        return self.inner.images(split, self.theirs(split, indices))

    def image(self, split: str, index: int) -> Pixels:
        return self.inner.image(split, int(self.theirs(split, np.array([index]))[0]))

    def prefetch(self, split: str, indices: Array) -> Callable[[int], Pixels]:
        return self.inner.prefetch(split, self.theirs(split, indices))

    def encoded_images(self, split: str) -> Iterator[Path | Blob]:
        if self.has_copies:
            return self.inner.encoded_images(split)
        return self.inner.encoded_rows(split, self.rows(split))

    def fetch(self) -> None:
        self.inner.fetch()

    def identity_of_images(self) -> Facts:
        return self.identity
