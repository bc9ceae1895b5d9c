"""Datasets: where images and labels come from. No torch here, so that a plan can be made before it is imported.

The contract: `identity` (what a fingerprint covers), `count(split)`, and `load(split)` -> images and labels.
`train` may be all there is; `why_unprobed` then says why there will be no numbers. Where train has no labels, a third
split `labelled` may hold images with labels for the probe to be fitted on.

Folders of images are in folders.py and imagenet.py, torchvision's datasets in vision.py, parquet files in parquet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.artifacts import fingerprint
from rela_cli.data.broken import Broken
from rela_cli.data.images import Blob, Pixels
from rela_cli.data.labels import label_set
from rela_cli.hashing import mix32

Array = np.ndarray
FAKE_LIMIT = 256_000_000  # bytes of pixels; beyond that fake images are made whenever they are used


def stratified(labels: Array | None, total: int, keep: int | None, seed: int) -> Array:
    """Sorted indices of `keep` samples, each class in its proportion (largest remainders first); all when None.

    numpy's RandomState is used because its stream is frozen for good.
    """
    if keep is None or keep >= total:
        return np.arange(total)
    random = np.random.RandomState(seed)
    if labels is None:
        return np.sort(random.permutation(total)[:keep])
    classes, counts = np.unique(labels, return_counts=True)
    quota = counts * keep / total
    share = np.floor(quota).astype(int)
    share[np.argsort(share - quota, kind="stable")[: keep - share.sum()]] += 1
    chosen = [random.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(chosen))


class Dataset:
    """What all datasets share: limits, a seed of their own, and whether a mirrored image is the same thing."""

    splits: tuple[str, ...] = ("train", "test")
    classes: list[str] | None = None
    why_unprobed: str | None = None
    on_error = "raise"  # or "skip": leave out encoded images that cannot be decoded, up to a limit
    image_size: int | None = None  # what a network is shown, where that is less than what is decoded

    def __init__(
        self, limit: int | None, test_limit: int | None, seed: int, flip: bool, cache: Path | None = None
    ) -> None:
        self.limits = {"train": limit, "test": test_limit}
        self.seed, self.flip, self.cache = seed, flip, cache

    @property
    def on_disk(self) -> bool:
        """Whether images are decoded anew whenever they are used, rather than once into memory."""
        return False

    @property
    def side(self) -> int | None:
        """Pixels a side of what is decoded into memory; None where only a look at the images would tell."""
        return self.image_size

    def fetch(self) -> None:
        """Get what has to be downloaded; most have nothing to."""

    def check_sizes(self) -> None:
        """Before a run has a folder: whether its images go into one array, as far as a look at some of them tells.

        Raises:
            ConfigError: they have different sizes, and none was asked for.
        """

    def full_count(self, split: str) -> int:
        """Samples of a split before limits."""
        raise NotImplementedError

    def labels(self, split: str) -> Array | None:
        """All labels of a split before limits: (N,) int64, or None where there are none."""
        raise NotImplementedError

    def images(self, split: str, indices: Array) -> Array:
        """The pixels of some samples: (n, S, S, 3) uint8."""
        raise NotImplementedError

    def image(self, split: str, index: int) -> Pixels:
        """The pixels of one sample, (S, S, 3) uint8; called from several threads where images stay on disk."""
        pixels: Pixels = self.images(split, np.array([index]))[0]
        return pixels

    def start(self, split: str, indices: Array) -> Callable[[int], Pixels]:
        """A function that gives the pixels of the i-th of some samples. What lies afar is asked for here, together."""
        return lambda i: self.image(split, int(indices[i]))

    @property
    def skipped(self) -> Broken:
        """Images that were left out because they cannot be decoded: split -> name -> reason."""
        return {}

    def sources(self, split: str) -> Iterator[Path | Blob]:
        """The encoded images of a split, in order; none where the dataset holds pixels."""
        return iter(())

    def contents(self, split: str) -> str | None:
        """The hash over all encoded images of a split, where it was written down when they were; else None."""
        return None

    def source(self) -> dict[str, Any]:
        """What identifies the images themselves, read cheaply at each start."""
        raise NotImplementedError

    @property
    def label_set(self) -> str | None:
        """The well-known labels that its classes are, else a name for their own; None without classes."""
        if not self.classes:
            return None
        return label_set(self.classes) or f"classes {fingerprint({'names': sorted(self.classes)})[:8]}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the bytes of the cached arrays."""
        disk = {"on_disk": True} if self.on_disk else {}
        return {**self.source(), "limits": self.limits, "seed": self.seed, **disk}

    def count(self, split: str) -> int:
        """Samples of a split after limits."""
        return min(self.full_count(split), self.limits.get(split) or self.full_count(split))

    def choose(self, split: str) -> tuple[Array, Array | None]:
        """Which samples the limits leave, as sorted indices (N,), and their labels (N,) int64 or None."""
        labels = self.labels(split)
        chosen = stratified(labels, self.full_count(split), self.limits.get(split), self.seed)
        return chosen, None if labels is None else labels[chosen]

    def load(self, split: str) -> tuple[Array, Array | None]:
        """Images (N, S, S, 3) uint8 and labels (N,) int64 or None."""
        chosen, labels = self.choose(split)
        return self.images(split, chosen), labels


class Digits(Dataset):
    """scikit-learn's handwritten digits, 8x8, in a fixed stratified split."""

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012
    sizes = {"train": 1437, "test": 360}  # noqa: RUF012
    side = 8

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def source(self) -> dict[str, Any]:
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

    def source(self) -> dict[str, Any]:
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

    def start(self, split: str, indices: Array) -> Callable[[int], Pixels]:
        pixels = self.images(split, indices)
        return lambda i: pixels[i]


class Cifar10(Dataset):
    """CIFAR-10 through torchvision, downloaded into `root` when allowed; its files are known by their md5."""

    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]  # noqa: RUF012
    sizes = {"train": 50_000, "test": 10_000}  # noqa: RUF012
    side = 32

    def __init__(self, root: str, download: bool, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.download = root, download

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def source(self) -> dict[str, Any]:
        return {"dataset": "cifar10", "md5": "c58f30108f718f92721af3b95e74349a"}

    def open(self, split: str) -> Any:
        from rela_cli.data.vision import open_dataset

        folder = "the folder cifar-10-batches-py"
        return open_dataset("CIFAR10", "CIFAR-10", folder, self.root, self.download, train=split == "train")

    def fetch(self) -> None:
        self.open("train")

    def labels(self, split: str) -> Array:
        return np.array(self.open(split).targets, dtype=np.int64)

    def images(self, split: str, indices: Array) -> Array:
        return np.asarray(self.open(split).data[indices])
