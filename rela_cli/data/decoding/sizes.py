"""Do images share one square size? Asked of a sample, by their headers, before a run has a folder."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rela_cli.data.decoding.images import ImageSource, one_square, open_file, open_image

SIZES_LOOKED_AT = 256  # images of a split that are looked at


def evenly_spaced(count: int) -> list[int]:
    """Which of `count` images are looked at: the first, the last, and others at equal distances."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, SIZES_LOOKED_AT))})


def check(sources: Iterable[ImageSource]) -> None:
    """Whether images that nobody said a size for go into one array, as far as their headers tell.

    Raises:
        ConfigError: sizes differ, or are not square; with a size that suits them.
    """
    one_square({size for source in sources if (size := height_and_width(source))})


def height_and_width(source: ImageSource) -> tuple[int, int] | None:
    """What the header says; None for what cannot be opened, which is said when all are decoded."""
    try:
        with open_file(source) as file, open_image(file) as image:
            return image.height, image.width
    except Exception:
        return None
