"""What every dataset is: images and labels of two splits, with an identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Config
from rela_cli.data.decoding.images import Blob, Pixels
from rela_cli.data.decoding.undecodable import Undecodable
from rela_cli.data.labels import label_set
from rela_cli.errors import ConfigError
from rela_cli.store.files import fingerprint

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


def open_dataset(config: Config) -> Dataset:
    """The dataset of a config, with the cache of its outputs folder to remember things in."""
    dataset: Dataset = instantiate(config.dataset, cache=config.outputs / "cache")
    return dataset


class Dataset:
    """What all datasets share: limits, a seed of their own, and whether a mirrored image is the same thing."""

    kind = ""  # its name in the configs
    root_is = ""  # what dataset.root has to be, for the message where it is not said
    splits: tuple[str, ...] = ("train", "test")
    classes: list[str] | None = None
    why_unprobed: str | None = None
    has_masks = False  # whether labels are a class for each pixel
    on_error = "raise"  # or "skip": leave out encoded images that cannot be decoded, up to a limit
    image_size: int | None = None  # what a network is shown, where that is less than what is decoded

    def __init__(
        self, limit: int | None, test_limit: int | None, seed: int, flip: bool, cache: Path | None = None
    ) -> None:
        self.limits = {"train": limit, "test": test_limit}
        self.seed, self.flip, self.cache = seed, flip, cache

    def needed(self, root: str | None) -> str:
        """dataset.root, without which there are no images.

        Raises:
            ConfigError: it is not said.
        """
        if not root:
            raise ConfigError(f"dataset={self.kind} needs dataset.root=FOLDER{self.root_is}")
        return root

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

    def masks(self, split: str, indices: Array) -> Array:
        """The masks of some samples, of a dataset that has masks: (n, S, S) uint8, 255 where nothing counts."""
        raise NotImplementedError

    def image(self, split: str, index: int) -> Pixels:
        """The pixels of one sample, (S, S, 3) uint8; called from several threads where images stay on disk."""
        pixels: Pixels = self.images(split, np.array([index]))[0]
        return pixels

    def prefetch(self, split: str, indices: Array) -> Callable[[int], Pixels]:
        """A function that gives the pixels of the i-th of some samples. What lies afar is asked for here, together."""
        return lambda i: self.image(split, int(indices[i]))

    @property
    def skipped(self) -> Undecodable:
        """Images that were left out because they cannot be decoded: split -> name -> reason."""
        return {}

    def encoded_images(self, split: str) -> Iterator[Path | Blob]:
        """The encoded images of a split, in order; none where the dataset holds pixels."""
        return iter(())

    def encoded_rows(self, split: str, rows: Array) -> Iterator[Path | Blob]:
        """The encoded images of some samples, in order."""
        kept = np.zeros(self.full_count(split), dtype=bool)
        kept[rows] = True
        return compress(self.encoded_images(split), kept)

    def contents_hash(self, split: str) -> str | None:
        """The hash over all encoded images of a split, where it was written down when they were; else None."""
        return None

    def identity_of_images(self) -> dict[str, Any]:
        """What identifies the images themselves, read cheaply at each start.

        Raises:
            ConfigError: a class from outside does not say it.
        """
        raise ConfigError(f"{type(self).__name__} needs a method identity_of_images(); before 0.2 it was source()")

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
        return {**self.identity_of_images(), "limits": self.limits, "seed": self.seed, **disk}

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
