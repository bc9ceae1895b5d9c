"""Images of a folder of any layout, each as the square that a network wants; what cannot be read is noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from rela_cli.data.base import Array, Dataset
from rela_cli.data.decoding.images import Pixels, decode, decoder_message
from rela_cli.errors import MissingError


@dataclass(frozen=True)
class Square:
    """How a file becomes a square of uint8: its shorter side is brought to `resize` pixels, the middle `crop` is shown.

    Without `interpolation` as every dataset of rela is decoded; with it as torchvision's Resize and CenterCrop do it,
    which is what the libraries' own weights were published with.
    """

    resize: int
    crop: int
    interpolation: str | None = None

    @property
    def side(self) -> int:
        """Pixels a side of what is decoded; where it is more than `crop`, its middle is taken later."""
        return self.crop if self.interpolation else self.resize

    def __call__(self, path: Path) -> Pixels:
        if self.interpolation is None:
            return decode(path, self.resize)
        image = F.resize(Image.fromarray(decode(path, None)), [self.resize], InterpolationMode(self.interpolation))
        return np.asarray(F.center_crop(image, [self.crop]))


class Files(Dataset):
    """Files below a folder as the one split of a dataset. One that cannot be read is black, and its row is noted."""

    splits = ("files",)

    def __init__(self, root: Path, paths: Sequence[str], square: Square) -> None:
        super().__init__(limit=None, test_limit=None, seed=0, flip=False)
        self.root, self.paths, self.square = root, paths, square
        self.unreadable: dict[int, str] = {}  # row -> why

    def full_count(self, split: str) -> int:
        return len(self.paths)

    def labels(self, split: str) -> Array | None:
        return None

    def image(self, split: str, index: int) -> Pixels:
        try:
            return self.square(self.root / self.paths[index])
        except MissingError as error:
            cause = error.__cause__
            self.unreadable[index] = decoder_message(cause) if isinstance(cause, Exception) else str(error)
            return np.zeros((self.square.side, self.square.side, 3), dtype=np.uint8)
