"""Datasets that torchvision reads: CIFAR-100, STL-10, and any other by its class name; downloads that fail fast."""

from __future__ import annotations

import inspect
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from rela_cli.data.base import Array, Dataset
from rela_cli.data.datasets import Cifar10
from rela_cli.data.decoding import sizes
from rela_cli.data.decoding.images import one_square, square, stacked
from rela_cli.data.decoding.modes import to_rgb
from rela_cli.data.files.downloads import open_torchvision
from rela_cli.data.labels import CIFAR100
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.store.files import fingerprint

GLANCES = 8  # images of a split that a fingerprint looks at
SPLIT_NAMES = {"train": ("train",), "test": ("test", "val", "valid")}  # what torchvision's datasets call their splits


class Cifar100(Cifar10):
    """CIFAR-100 with its 100 fine classes; its files are known by their md5."""

    classes = CIFAR100.split()
    kind, official = "cifar100", "CIFAR100"
    folder, md5 = "the folder cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85"


class Stl10(Dataset):
    """STL-10, 96x96. Trains on its 100,000 images without labels; the probe is fitted on its 5,000 with labels.

    With `unlabelled` false it trains on those 5,000 as well, and there is no third split.
    """

    side = 96
    sizes = {"unlabeled": 100_000, "train": 5_000, "test": 8_000}  # noqa: RUF012
    classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]  # noqa: RUF012

    def __init__(self, root: str, download: bool, unlabelled: bool, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.download = root, download
        self.official = {"train": "train", "test": "test"}  # our splits -> STL-10's names
        if unlabelled:
            self.official = {"train": "unlabeled", "labelled": "train", "test": "test"}
        self.splits = tuple(self.official)

    def full_count(self, split: str) -> int:
        return self.sizes[self.official[split]]

    def identity_of_images(self) -> dict[str, Any]:
        return {"dataset": "stl10", "md5": "91f7769df0f17e558f3565bffb0c7dfb", "train": self.official["train"]}

    def fetch(self) -> None:
        """Get it if it is not there."""
        self.open("test")

    def open(self, split: str) -> Any:
        folder = "the folder stl10_binary"
        return open_torchvision("STL10", "STL-10", folder, self.root, self.download, split=self.official[split])

    def labels(self, split: str) -> Array | None:
        if self.official[split] == "unlabeled":
            return None
        return np.asarray(self.open(split).labels, dtype=np.int64)

    def images(self, split: str, indices: Array) -> Array:
        return np.asarray(self.open(split).data[indices]).transpose(0, 2, 3, 1)


class Torchvision(Dataset):
    """Any dataset of torchvision with a train and a test split, images and one class an image.

    Its identity is made of its sizes, its labels and a few of its images, so it is opened at each start.
    """

    def __init__(self, dataset: str, root: str, download: bool, image_size: int | None, **common: Any) -> None:
        super().__init__(**common)
        self.dataset, self.root, self.download, self.image_size = dataset, root, download, image_size
        self.opened = {split: self.open(split) for split in self.splits}
        names = getattr(self.opened["train"], "classes", None)
        count = int(max(self.labels(split).max() for split in self.splits)) + 1
        self.classes = [str(n) for n in names] if names and len(names) >= count else [str(i) for i in range(count)]

    def open(self, split: str) -> Any:
        """One split, whatever torchvision calls it in this class.

        Raises:
            ConfigError: no such class, or one without a train and a test split.
        """
        import torchvision.datasets as known

        names = [name for name in known.__all__ if isinstance(getattr(known, name), type)]
        if self.dataset not in names:
            raise ConfigError(f"torchvision has no dataset {self.dataset!r}{did_you_mean(self.dataset, names)}")
        keywords = inspect.signature(getattr(known, self.dataset)).parameters
        if "download" not in keywords or not {"train", "split"} & set(keywords):
            raise ConfigError(f"torchvision's {self.dataset} has no train and test split; unpack it as image_folder")
        if "train" in keywords:
            return self.open_as(train=split == "train")
        return self.open_first(SPLIT_NAMES[split])

    def open_first(self, names: tuple[str, ...]) -> Any:
        """The first of several names for a split that this class knows."""
        for name in names:
            try:
                return self.open_as(split=name)
            except ValueError:  # torchvision's answer to a name that it does not know
                continue
        raise ConfigError(f"torchvision's {self.dataset} has no split {' or '.join(names)}")

    def open_as(self, **options: Any) -> Any:
        expected = f"what torchvision.datasets.{self.dataset} expects"
        return open_torchvision(self.dataset, self.dataset, expected, self.root, self.download, **options)

    def full_count(self, split: str) -> int:
        return len(self.opened[split])

    def identity_of_images(self) -> dict[str, Any]:
        return {"dataset": "torchvision", "name": self.dataset, "image_size": self.image_size, "glance": self.glance}

    @cached_property
    def glance(self) -> str:
        """A fingerprint of all labels and of a few images spread over each split."""
        seen: dict[str, Any] = {}
        for split, items in self.opened.items():
            spread = np.linspace(0, len(items) - 1, GLANCES).astype(int)
            pictures = [to_rgb(items[int(i)][0]) for i in spread]
            seen[split] = [self.labels(split).tolist(), [sha256(p.tobytes()).hexdigest() for p in pictures]]
        return fingerprint(seen)

    def labels(self, split: str) -> Array:
        items = self.opened[split]
        for name in ("targets", "labels", "_labels"):
            values = getattr(items, name, None)
            if values is not None and len(values) == len(items) and same_class(values, items):
                return np.array([int(value) for value in values], dtype=np.int64)
        try:
            return np.array([int(items[i][1]) for i in range(len(items))], dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"torchvision's {self.dataset} has no single class for an image") from error

    def check_sizes(self) -> None:
        if self.image_size is None:
            seen = [items[i][0].size for items in self.opened.values() for i in sizes.evenly_spaced(len(items))]
            one_square({(height, width) for width, height in seen})

    def images(self, split: str, indices: Array) -> Array:
        items = self.opened[split]
        return stacked([np.asarray(square(to_rgb(items[int(i)][0]), self.image_size)) for i in indices])


def same_class(values: Any, items: Any) -> bool:
    """Whether a list of labels agrees with what the dataset gives as class, at both ends and in the middle."""
    places = (0, len(items) // 2, len(items) - 1)
    try:
        return all(int(values[i]) == int(items[i][1]) for i in places)
    except (TypeError, ValueError):
        return False
