"""`rela.open`: an efficient dataset in any loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from rela_cli.api.maps import JoinedMap, Map
from rela_cli.data.efficient.dataset import Efficient
from rela_cli.data.efficient.folder import MAP
from rela_cli.data.efficient.targets import ShardedTargets, mapped_targets, mapped_views
from rela_cli.errors import ConfigError, MissingError, did_you_mean

Key = int | slice | str | Sequence[int] | Sequence[str] | Tensor
Transform = Callable[[Tensor], Any]


def open_folder(folder: str | Path, split: str = "train", images: str | Path | None = None) -> EfficientDataset:
    """An efficient dataset, as `rela convert` has written it.

    `images` says where the images lie, for a folder without them (`--images none`) or where they have moved.

    >>> data = open_folder("efficient")
    >>> data
    EfficientDataset('efficient', train: 1437 targets of 64, by patches)
    >>> data[3].shape, data[torch.tensor([3, 5])].shape
    (torch.Size([64]), torch.Size([2, 64]))

    Raises:
        MissingError: no efficient dataset, one that is not whole, or without that split.
    """
    return EfficientDataset(Efficient(str(folder), None if images is None else str(images)), split)


class EfficientDataset:
    """The targets of one split: N samples of `width` numbers. Index it by number or by path.

    Sample i is row i of everything: `data[i]`, `data.labels[i]`, `data.names[i]`, `data.images()[i]`.
    """

    def __init__(self, dataset: Efficient, split: str) -> None:
        if split not in dataset.splits:
            hint = did_you_mean(split, dataset.splits)
            raise MissingError(f"{dataset.folder.root} has no {split}{hint} (it has {', '.join(dataset.splits)})")
        self.dataset, self.split = dataset, split
        self.rows = ShardedTargets(mapped_targets(dataset.folder, split))
        self.moved: Tensor | None = None

    def __repr__(self) -> str:
        by = self.dataset.folder.facts["prior"]["called"]
        return f"EfficientDataset({str(self.folder)!r}, {self.split}: {len(self)} targets of {self.width}, by {by})"

    def __len__(self) -> int:
        return len(self.rows)

    # ------------------------------------------------------------------------------------------------- targets

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.dataset.folder.root

    @property
    def width(self) -> int:
        """k, the numbers of a target."""
        return self.rows.shape[1]

    @property
    def ordered(self) -> bool:
        """Whether the most important numbers come first, so that a narrower learner may take the first few."""
        return bool(self.dataset.folder.facts["transport"]["ordered"])

    @property
    def per_feature(self) -> int:
        """How many numbers a learner takes for each of its features, where they are ordered."""
        return int(self.dataset.folder.facts["transport"].get("per_feature", 1))

    @property
    def device(self) -> torch.device:
        """Where targets are given."""
        return torch.device("cpu") if self.moved is None else self.moved.device

    def to(self, device: str | torch.device) -> EfficientDataset:
        """This dataset with all targets in a device's memory, N x k of 2 bytes; on the CPU they are read as needed."""
        other = EfficientDataset(self.dataset, self.split)
        other.moved = torch.cat(self.rows.parts).to(device)
        return other

    def __getitem__(self, key: Key) -> Tensor:
        """Targets, float32: (k,) of one number or path, (n, k) of several or of a slice.

        >>> data = open_folder("efficient")
        >>> torch.equal(data[-1], data[len(data) - 1]), data[:10].shape
        (True, torch.Size([10, 64]))

        Raises:
            IndexError: a number beyond the last sample. KeyError: a path that is no sample's.
        """
        if isinstance(key, int | str):
            return self[[self.number(key)]][0]
        rows = self.numbers(key)
        found = self.rows[rows] if self.moved is None else self.moved[rows.to(self.moved.device)]
        return found.float()

    def numbers(self, key: Key) -> Tensor:
        """Sample numbers (n,) int64, from 0."""
        if isinstance(key, slice):
            return torch.arange(len(self))[key]
        if not isinstance(key, Tensor):
            key = torch.tensor([self.number(one) for one in key], dtype=torch.int64)  # type: ignore[union-attr]
        rows = key.reshape(-1).to("cpu", torch.int64)
        if len(rows) and not -len(self) <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"sample {int(rows.max())} of {len(self)}: numbers go from 0 to {len(self) - 1}")
        return rows % len(self)

    def number(self, key: int | str) -> int:
        """The number of a sample, by its number or by its path below the dataset's folder."""
        if not isinstance(key, str):
            return int(key)
        if key not in self.by_name:
            which = "the samples of this dataset are no files" if not self.names else f"such as {self.names[0]}"
            raise KeyError(f"{key} is no sample of {self.split} in {self.folder} ({which})")
        return self.by_name[key]

    @cached_property
    def names(self) -> list[str]:
        """The path of each sample below the dataset's folder; none where the samples are no files."""
        return self.dataset.folder.names(self.split)

    @cached_property
    def by_name(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def labels(self) -> Tensor | None:
        """(N,) int64, or None.

        >>> open_folder("efficient").labels[:3].dtype
        torch.int64
        """
        labels = self.dataset.labels(self.split)
        return None if labels is None else torch.from_numpy(labels.copy())

    @property
    def classes(self) -> list[str] | None:
        """The names of the labels."""
        return self.dataset.classes

    @property
    def card(self) -> dict[str, Any]:
        """What the card says to programs: prior, licence, labels it has seen, preprocessing, cost, versions.

        >>> open_folder("efficient").card["rela"]["prior"]["labels_seen"]
        []
        """
        return self.dataset.folder.card

    @property
    def views(self) -> int:
        """K, the light views of each train image that have targets of their own (extract.views); else 0.

        >>> open_folder("efficient").views
        0
        """
        return int((self.dataset.folder.views or {"count": 0})["count"]) if self.split == "train" else 0

    @cached_property
    def boxes(self) -> Tensor:
        """Where light views are cut, (N, K, 5) int16: top, left, height, width in pixels of `images()`, is mirrored."""
        return self.view_rows[1]

    @cached_property
    def view_rows(self) -> tuple[ShardedTargets, Tensor]:
        """The targets of all light views, (N, K * k), and their boxes.

        Raises:
            ConfigError: there are none.
        """
        if not self.views:
            raise ConfigError(
                f"{self.folder} holds no light views of {self.split}: rela convert extract.views=4 makes some"
            )
        parts, boxes = mapped_views(self.dataset.folder)
        return ShardedTargets(parts), boxes

    def targets_of_views(self, numbers: Tensor | Sequence[int], which: Tensor) -> Tensor:
        """The targets of one light view of each sample: numbers (n,), which (n,) from 0 to K - 1 -> (n, k) float32."""
        rows = self.numbers(torch.as_tensor(numbers))
        found = self.view_rows[0][rows].unflatten(1, (self.views, -1))
        return found[torch.arange(len(rows)), which.cpu()].float()

    def transport(self, features: Tensor) -> Tensor:
        """Features of new images, by the same prior, into the space of the targets: (n, D) -> (n, k) float32."""
        return self.map(features)

    @cached_property
    def map(self) -> Map:
        """The fitted map: mean (D,), axes (D, k), scale (k,), eigenvalues (D,), where the transport has them."""
        target = str(self.dataset.folder.facts["transport"]["target"])
        state = load_file(self.folder / MAP)
        return (JoinedMap if "widths" in state else Map)(state, is_turned_back=target.endswith(".ZCA"))

    def verify(self) -> list[str]:
        """Read every file; a line for each that is not what `rela convert` wrote."""
        return list(self.dataset.folder.problems(contents=True, afresh=True))

    # -------------------------------------------------------------------------------------------------- images

    @property
    def image_size(self) -> int:
        """S, pixels a side of what a network is shown."""
        return int(self.dataset.folder.facts["made"]["images"]["size"])

    @property
    def mean(self) -> tuple[float, float, float]:
        """The mean of each channel of the train images, in [0, 1]."""
        red, green, blue = self.dataset.folder.facts["made"]["images"]["mean"]
        return red, green, blue

    @property
    def std(self) -> tuple[float, float, float]:
        """The standard deviation of each channel of the train images, in [0, 1]."""
        red, green, blue = self.dataset.folder.facts["made"]["images"]["std"]
        return red, green, blue

    def images(self, transform: Transform | None = None) -> EfficientImages:
        """The images as a torch dataset of (image, number), an image being (3, H, W) uint8, or a `transform` of it.

        >>> image, number = open_folder("efficient").images()[3]
        >>> image.shape, image.dtype, number
        (torch.Size([3, 8, 8]), torch.uint8, 3)
        """
        return EfficientImages(self.dataset, self.split, transform)


class EfficientImages(TorchDataset[tuple[Any, int]]):
    """Images of a split, decoded when they are asked for; small ones all at once, then kept in memory.

    Raises:
        MissingError: the folder holds no images, and they are not where they were.
    """

    def __init__(self, dataset: Efficient, split: str, transform: Transform | None) -> None:
        self.dataset, self.split, self.transform = dataset, split, transform
        if dataset.full_count(split) == 0:
            raise ConfigError(f"{dataset.folder.root} has no {split} images")
        dataset.inner  # noqa: B018 - says now, and not in a worker, that they are not there

    def __len__(self) -> int:
        return self.dataset.full_count(self.split)

    @cached_property
    def pixels(self) -> np.ndarray | None:
        """(N, S, S, 3) uint8 where all are in memory."""
        if self.dataset.on_disk:
            return None
        return self.dataset.images(self.split, np.arange(len(self)))

    def __getitem__(self, number: int) -> tuple[Any, int]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        number = int(number) % len(self)
        pixels = self.dataset.image(self.split, number) if self.pixels is None else self.pixels[number]
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return (self.transform(image) if self.transform else image), number
