"""From encoded images to pixels: decoding done right for every kind of image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rela_cli.errors import ConfigError, MissingError

Pixels = np.ndarray  # (H, W, 3) uint8
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"])
HANDFUL = 64  # files a thread takes at a time, at most: handing over small ones one by one costs as much as decoding
REDUCING_GAP = 4  # a JPEG is decoded at 1/2, 1/4 or 1/8 only if that leaves this many times the size asked for


@dataclass(frozen=True)
class Blob:
    """An encoded image that is not a file of its own."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def decode(source: Path | str | Blob, size: int | None) -> Pixels:
    """One image as RGB, upright, first frame, alpha over white; (size, size, 3) when a size is given.

    Raises:
        MissingError: naming the path, when it is not an image that Pillow can read.
    """
    try:
        with Image.open(BytesIO(source.data) if isinstance(source, Blob) else source) as image:
            if size:
                image.draft(None, (REDUCING_GAP * size, REDUCING_GAP * size))  # for JPEG; others ignore it
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(square(to_rgb(image), size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MissingError(f"{source} cannot be read as an image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits are divided by 257 (Pillow's own conversion saturates), alpha goes over white."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def square(image: Image.Image, size: int | None) -> Image.Image:
    """Shorter side to `size` (bicubic, antialiased), then the centre; unchanged when `size` is None."""
    if size is None or image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def decode_all(sources: Sequence[Path | str | Blob], size: int | None) -> np.ndarray:
    """All images as one array: (N, S, S, 3) uint8.

    Raises:
        ConfigError: when sizes differ or are not square and no size was asked for.
    """
    cores = os.cpu_count() or 1
    share = max(1, min(HANDFUL, len(sources) // (4 * cores)))
    handfuls = [sources[start : start + share] for start in range(0, len(sources), share)]
    with ThreadPoolExecutor(cores) as pool:  # Pillow decodes outside the interpreter's lock
        decoded = chain.from_iterable(pool.map(lambda some: [decode(source, size) for source in some], handfuls))
        if size is None:
            return stacked(list(decoded))
        pixels = np.empty((len(sources), size, size, 3), dtype=np.uint8)  # filled in place: half the memory of a stack
        for row, image in enumerate(decoded):
            pixels[row] = image
    return pixels


def stacked(images: Sequence[Pixels]) -> np.ndarray:
    """Images that share one square size as one array."""
    shapes = {image.shape[:2] for image in images}
    if len(shapes) > 1 or any(height != width for height, width in shapes):
        seen = ", ".join(f"{w}x{h}" for h, w in sorted(shapes)[:4]) + (", ..." if len(shapes) > 4 else "")
        raise ConfigError(f"the images are {seen}: say dataset.image_size=SIZE to bring them to one square size")
    return np.stack(images)
