"""Datasets: where images and labels come from. No torch here, so that a plan can be made before it is imported.

The contract: `identity` (what a fingerprint covers), `count(split)`, and `load(split)` -> images and labels.
`train` may be all there is; `why_unprobed` then says why there will be no numbers. Where train has no labels, a third
split `labelled` may hold images with labels for the probe to be fitted on.

Folders of images are in folders.py and imagenet.py, torchvision's datasets in vision.py, parquet files in parquet.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.data.base import Array, Dataset, stratified
from rela_cli.data.decoding.images import Pixels
from rela_cli.data.labels import CIFAR10
from rela_cli.numerics.integer_hash import mix32

FAKE_LIMIT = 256_000_000  # bytes of pixels; beyond that fake images are made whenever they are used


class Digits(Dataset):
    """scikit-learn's handwritten digits, 8x8, in a fixed stratified split."""

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012
    sizes = {"train": 1437, "test": 360}  # noqa: RUF012
    side = 8

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def identity_of_images(self) -> dict[str, Any]:
        return {"dataset": "digits"}

    @cached_property
    def data(self) -> tuple[Array, Array]:
        gray, labels = digits_table()
        pixels = np.rint(gray.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        return np.repeat(pixels, 3, axis=3), labels.astype(np.int64)

    def rows(self, split: str) -> Array:
        train = stratified(self.data[1], 1797, self.sizes["train"], seed=0)
        return train if split == "train" else np.setdiff1d(np.arange(1797), train)

    def labels(self, split: str) -> Array:
        return self.data[1][self.rows(split)]

    def images(self, split: str, indices: Array) -> Array:
        return self.data[0][self.rows(split)[indices]]


def digits_table() -> tuple[Array, Array]:
    """Grey levels (1797, 64) from 0 to 16, and labels; from its file, for importing scikit-learn takes a second."""
    package = find_spec("sklearn")
    path = Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    gray, labels = load_digits(return_X_y=True)
    return gray, labels


class Fake(Dataset):
    """Noise with a class-dependent tint, any size and number of classes; each image a function of (seed, split, index).

    Many are made whenever they are used, like images that stay on disk, and no pixel of them is stored.
    """

    def __init__(
        self, n: int, n_test: int, size: int, classes: int, on_disk: bool | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        self.sizes, self.size, self.wants_disk = {"train": n, "test": n_test}, size, on_disk
        self.classes = [f"class{i}" for i in range(classes)]

    @property
    def side(self) -> int:
        return self.size

    @property
    def on_disk(self) -> bool:
        if self.wants_disk is not None:
            return self.wants_disk
        return 3 * self.size**2 * sum(self.count(split) for split in self.splits) > FAKE_LIMIT

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def identity_of_images(self) -> dict[str, Any]:
        facts = {"dataset": "fake", "sizes": self.sizes, "size": self.size, "classes": len(self.classes or ())}
        return {**facts, "by": "index"}

    def labels(self, split: str) -> Array:
        return np.arange(self.sizes[split]) % len(self.classes or ())

    def images(self, split: str, indices: Array) -> Array:
        classes, shape = len(self.classes or ()), (self.size, self.size, 3)
        tint = np.random.RandomState(0).randint(0, 96, (classes, 1, 1, 3)).astype(np.uint8)
        stream = np.array([2 * self.seed + (split == "test")]).astype(np.uint32)
        index = mix32(np.asarray(indices).astype(np.uint32) ^ mix32(stream))
        noise = mix32(index[:, None] + mix32(np.arange(np.prod(shape), dtype=np.uint32))) % 160
        return noise.astype(np.uint8).reshape(-1, *shape) + tint[np.asarray(indices) % classes]

    def prefetch(self, split: str, indices: Array) -> Callable[[int], Pixels]:
        pixels = self.images(split, indices)
        return lambda i: pixels[i]


class Cifar10(Dataset):
    """CIFAR-10 through torchvision, downloaded into `root` when allowed; its files are known by their md5."""

    classes = CIFAR10.split()
    sizes = {"train": 50_000, "test": 10_000}  # noqa: RUF012
    side = 32
    kind, official = "cifar10", "CIFAR10"  # our name, and that of torchvision's class
    folder, md5 = "the folder cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a"

    def __init__(self, root: str, download: bool, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.download = root, download

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def identity_of_images(self) -> dict[str, Any]:
        return {"dataset": self.kind, "md5": self.md5}

    def open(self, split: str) -> Any:
        """A split as torchvision has it."""
        from rela_cli.data.files.downloads import open_torchvision

        title = self.official.replace("CIFAR", "CIFAR-")
        return open_torchvision(self.official, title, self.folder, self.root, self.download, train=split == "train")

    def fetch(self) -> None:
        self.open("train")

    def labels(self, split: str) -> Array:
        return np.array(self.open(split).targets, dtype=np.int64)

    def images(self, split: str, indices: Array) -> Array:
        return np.asarray(self.open(split).data[indices])
