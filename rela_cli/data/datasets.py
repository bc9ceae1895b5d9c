"""Datasets: where images and labels come from. No torch here, so that a plan can be made before it is imported.

The contract: `identity` (what a fingerprint covers), `count(split)`, and `load(split)` -> images and labels.
`train` may be all there is; `why_unprobed` then says why there will be no numbers.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.artifacts import fingerprint
from rela_cli.data.images import SUFFIXES, decode_all
from rela_cli.data.labels import label_set
from rela_cli.errors import ConfigError, MissingError

Array = np.ndarray


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

    classes: list[str] | None = None
    why_unprobed: str | None = None

    def __init__(self, limit: int | None, test_limit: int | None, seed: int, flip: bool) -> None:
        self.limits = {"train": limit, "test": test_limit}
        self.seed, self.flip = seed, flip

    def fetch(self) -> None:
        """Get what has to be downloaded; most have nothing to."""

    def full_count(self, split: str) -> int:
        """Samples of a split before limits."""
        raise NotImplementedError

    def labels(self, split: str) -> Array | None:
        """All labels of a split before limits: (N,) int64, or None where there are none."""
        raise NotImplementedError

    def images(self, split: str, indices: Array) -> Array:
        """The pixels of some samples: (n, S, S, 3) uint8."""
        raise NotImplementedError

    def source(self) -> dict[str, Any]:
        """What identifies the images themselves, read cheaply at each start."""
        raise NotImplementedError

    @property
    def label_set(self) -> str | None:
        """The well-known labels that its classes are, if they are."""
        return label_set(self.classes)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the bytes of the cached arrays."""
        return {**self.source(), "limits": self.limits, "seed": self.seed}

    def count(self, split: str) -> int:
        """Samples of a split after limits."""
        return min(self.full_count(split), self.limits[split] or self.full_count(split))

    def load(self, split: str) -> tuple[Array, Array | None]:
        """Images (N, S, S, 3) uint8 and labels (N,) int64 or None."""
        labels = self.labels(split)
        chosen = stratified(labels, self.full_count(split), self.limits[split], self.seed)
        return self.images(split, chosen), None if labels is None else labels[chosen]


class Digits(Dataset):
    """scikit-learn's handwritten digits, 8x8, in a fixed stratified split."""

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012
    sizes = {"train": 1437, "test": 360}  # noqa: RUF012

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def source(self) -> dict[str, Any]:
        return {"dataset": "digits"}

    @cached_property
    def data(self) -> tuple[Array, Array]:
        from sklearn.datasets import load_digits

        gray, labels = load_digits(return_X_y=True)
        pixels = np.rint(gray.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        return np.repeat(pixels, 3, axis=3), labels.astype(np.int64)

    def rows(self, split: str) -> Array:
        train = stratified(self.data[1], 1797, self.sizes["train"], seed=0)
        return train if split == "train" else np.setdiff1d(np.arange(1797), train)

    def labels(self, split: str) -> Array:
        return self.data[1][self.rows(split)]

    def images(self, split: str, indices: Array) -> Array:
        return self.data[0][self.rows(split)[indices]]


class Fake(Dataset):
    """Noise with a class-dependent tint, any size and number of classes."""

    def __init__(self, n: int, n_test: int, size: int, classes: int, **common: Any) -> None:
        super().__init__(**common)
        self.sizes, self.size = {"train": n, "test": n_test}, size
        self.classes = [f"class{i}" for i in range(classes)]

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def source(self) -> dict[str, Any]:
        return {"dataset": "fake", "sizes": self.sizes, "size": self.size, "classes": len(self.classes or ())}

    def labels(self, split: str) -> Array:
        return np.arange(self.sizes[split]) % len(self.classes or ())

    def images(self, split: str, indices: Array) -> Array:
        random = np.random.RandomState(self.seed + 1000 * (split == "test"))
        noise = random.randint(0, 160, (self.sizes[split], self.size, self.size, 3))
        tint = np.random.RandomState(0).randint(0, 96, (len(self.classes or ()), 1, 1, 3))
        return (noise[indices] + tint[self.labels(split)[indices]]).astype(np.uint8)


class ImageFolder(Dataset):
    """A folder of images: train/<class>/* beside test/ or val/, or <class>/*, or just files.

    Raises:
        ConfigError: no root given. MissingError: no such folder, or nothing in it that looks like an image.
    """

    def __init__(self, root: str | None, image_size: int | None, **common: Any) -> None:
        super().__init__(**common)
        if not root:
            raise ConfigError("dataset=image_folder needs dataset.root=FOLDER")
        self.root, self.image_size = Path(root).expanduser(), image_size
        if not self.root.is_dir():
            raise MissingError(f"dataset.root={root} is not a folder (looked at {self.root.resolve()})")
        self.train_folder = self.root / "train" if (self.root / "train").is_dir() else self.root
        held_out = [self.root / name for name in ("test", "val") if (self.root / name).is_dir()]
        self.test_folder = held_out[0] if held_out and self.train_folder != self.root else None
        self.read_classes()

    def read_classes(self) -> None:
        """Classes are the folders of train/; loose files mean that there are none."""
        names = sorted(entry.name for entry in os.scandir(self.train_folder) if entry.is_dir())
        flat = not names or any(Path(entry.name).suffix.lower() in SUFFIXES for entry in os.scandir(self.train_folder))
        self.classes = None if flat else names
        if flat:
            self.why_unprobed = f"{self.train_folder} has no class folders"
        elif self.test_folder is None:
            self.why_unprobed = f"{self.root} has no train/ with a test/ or val/ beside it"
        elif strange := sorted({e.name for e in os.scandir(self.test_folder) if e.is_dir()} - set(names)):
            raise MissingError(f"{self.test_folder} has classes that train lacks: {', '.join(strange[:5])}")

    @cached_property
    def files(self) -> dict[str, list[tuple[str, int, int]]]:
        """(path, bytes, modification time) of each image of a split, sorted by path."""
        folders = {"train": self.train_folder, "test": self.test_folder if self.classes else None}
        found = {split: sorted(scan(folder)) if folder else [] for split, folder in folders.items()}
        if not found["train"]:
            raise MissingError(f"no images in {self.train_folder} (looked for {', '.join(sorted(SUFFIXES))})")
        self.check_no_empty_class(found["train"])
        return found

    def check_no_empty_class(self, files: list[tuple[str, int, int]]) -> None:
        filled = {self.class_of(path, self.train_folder) for path, _, _ in files}
        if empty := [name for name in self.classes or () if name not in filled]:
            raise MissingError(f"no images in {self.train_folder / empty[0]}: remove the folder or fill it")

    def class_of(self, path: str, folder: Path) -> str:
        return os.path.relpath(path, folder).split(os.sep, 1)[0]

    def full_count(self, split: str) -> int:
        return len(self.files[split])

    def source(self) -> dict[str, Any]:
        where = str(self.root)
        listing = [[os.path.relpath(p, where), size, time] for split in self.files.values() for p, size, time in split]
        files = {"count": len(listing), "listing": fingerprint({"files": listing})}
        return {"dataset": "image_folder", **files, "image_size": self.image_size}

    def labels(self, split: str) -> Array | None:
        folder = self.train_folder if split == "train" else self.test_folder
        if self.classes is None or folder is None:
            return None
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[self.class_of(path, folder)] for path, _, _ in self.files[split]], dtype=np.int64)

    def images(self, split: str, indices: Array) -> Array:
        return decode_all([Path(self.files[split][i][0]) for i in indices], self.image_size)


def scan(folder: Path) -> list[tuple[str, int, int]]:
    """All image files below a folder: (path, bytes, modification time in nanoseconds)."""
    found: list[tuple[str, int, int]] = []
    for entry in os.scandir(folder):
        if entry.is_dir():
            found += scan(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            status = entry.stat()
            found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found


class Cifar10(Dataset):
    """CIFAR-10 through torchvision, downloaded into `root` when allowed; its files are known by their md5."""

    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]  # noqa: RUF012
    sizes = {"train": 50_000, "test": 10_000}  # noqa: RUF012

    def __init__(self, root: str, download: bool, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.download = root, download

    def full_count(self, split: str) -> int:
        return self.sizes[split]

    def source(self) -> dict[str, Any]:
        return {"dataset": "cifar10", "md5": "c58f30108f718f92721af3b95e74349a"}

    def open(self, split: str) -> Any:
        from torchvision.datasets import CIFAR10

        try:
            return CIFAR10(self.root, train=split == "train", download=self.download)
        except (RuntimeError, OSError) as error:
            raise MissingError(
                f"CIFAR-10 is not in dataset.root={self.root} and could not be fetched ({error}). Put the folder "
                f"cifar-10-batches-py there, or use dataset=image_folder dataset.root=FOLDER"
            ) from error

    def fetch(self) -> None:
        self.open("train")

    def labels(self, split: str) -> Array:
        return np.array(self.open(split).targets, dtype=np.int64)

    def images(self, split: str, indices: Array) -> Array:
        return np.asarray(self.open(split).data[indices])
