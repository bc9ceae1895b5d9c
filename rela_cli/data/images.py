"""From encoded images to pixels: decoding done right for every kind of image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rela_cli.data import jpegs
from rela_cli.errors import ConfigError, MissingError

Pixels = np.ndarray  # (H, W, 3) uint8
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"])
HANDFUL = 64  # files a thread takes at a time, at most: handing over small ones one by one costs as much as decoding
JPEGS = (".jpg", ".jpeg", ".jfif")
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
    pixels = plain(source, size)
    return by_pillow(source, size) if pixels is None else pixels


def plain(source: Path | str | Blob, size: int | None) -> Pixels | None:
    """A plain JPEG by the fast decoder, the same pixels as Pillow's; None for what is Pillow's to decode."""
    blob = isinstance(source, Blob)
    if jpegs.decoder() is None or not (blob or str(source).lower().endswith(JPEGS)):
        return None
    with suppress(OSError):  # Pillow says it better
        data = source.data if isinstance(source, Blob) else jpegs.read(source)
        pixels = jpegs.decode_plain(data, 2 * REDUCING_GAP * size if size else None)
        if pixels is None or size is None or pixels.shape[:2] == (size, size):
            return pixels
        return np.asarray(square(Image.fromarray(pixels), size))
    return None


def by_pillow(source: Path | str | Blob, size: int | None) -> Pixels:
    """Any image."""
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
    """All images as one array: (N, S, S, 3) uint8; it lies in memory as (N, 3, S, S), which is how it is stored.

    Raises:
        ConfigError: when sizes differ or are not square and no size was asked for.
    """
    side = size or len(decode(sources[0], None))
    pixels = np.empty((len(sources), 3, side, side), dtype=np.uint8)
    cores = os.cpu_count() or 1
    share = max(1, min(HANDFUL, len(sources) // (4 * cores)))
    handfuls = [slice(start, start + share) for start in range(0, len(sources), share)]
    with ThreadPoolExecutor(cores) as pool:  # images are decoded outside the interpreter's lock
        one_square(set().union(*pool.map(partial(put, sources, size, pixels), handfuls)))
    return pixels.transpose(0, 2, 3, 1)


def put(
    sources: Sequence[Path | str | Blob], size: int | None, pixels: np.ndarray, rows: slice
) -> set[tuple[int, int]]:
    """Some images into their rows of (N, 3, S, S) if they are of that size; the sizes that were seen."""
    images = [decode(source, size) for source in sources[rows]]
    shapes: set[tuple[int, int]] = {image.shape[:2] for image in images}
    if shapes == {pixels.shape[2:]}:
        pixels[rows] = np.stack(images).transpose(0, 3, 1, 2)
    return shapes


def stacked(images: Sequence[Pixels]) -> np.ndarray:
    """Images that share one square size as one array."""
    one_square({image.shape[:2] for image in images})
    return np.stack(images)


def one_square(shapes: set[tuple[int, int]]) -> None:
    """Whether images of these heights and widths go into one array.

    Raises:
        ConfigError: sizes differ, or are not square.
    """
    if len(shapes) > 1 or any(height != width for height, width in shapes):
        seen = ", ".join(f"{w}x{h}" for h, w in sorted(shapes)[:4]) + (", ..." if len(shapes) > 4 else "")
        raise ConfigError(f"the images are {seen}: say dataset.image_size=SIZE to bring them to one square size")
