"""From encoded images to pixels: decoding done right for every kind of image."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

from rela_cli.data import jpegs
from rela_cli.errors import ConfigError, MissingError

Pixels = np.ndarray  # (H, W, 3) uint8
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"])
HANDFUL = 256  # files a thread takes at a time, at most: handing over small ones one by one costs as much as decoding
SLOW = 2e-4  # seconds a file from which on threads read side by side; from memory it takes 6e-6
JPEGS = (".jpg", ".jpeg", ".jfif")
REDUCING_GAP = 4  # a JPEG is decoded at 1/2, 1/4 or 1/8 only if that leaves this many times the size asked for


@dataclass(frozen=True)
class Blob:
    """An encoded image that is not a file of its own."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Source = Path | str | Blob


def decode(source: Source, size: int | None) -> Pixels:
    """One image as RGB, upright, first frame, alpha over white; (size, size, 3) when a size is given.

    Raises:
        MissingError: naming the path, when it is not an image that Pillow can read.
    """
    return decoded(source, plain(source, size), size)


def plain(source: Source, size: int | None) -> bytes | None:
    """The bytes of a plain JPEG that the fast decoder may have; None for what is Pillow's to decode."""
    blob = isinstance(source, Blob)
    if jpegs.decoder() is None or not (blob or str(source).lower().endswith(JPEGS)):
        return None
    try:
        data = source.data if isinstance(source, Blob) else jpegs.read(source)
    except OSError:  # Pillow says it better
        return None
    return data if jpegs.is_plain(data, 2 * REDUCING_GAP * size if size else None) else None


def decoded(source: Source, data: bytes | None, size: int | None) -> Pixels:
    """An image from what `plain` gave for it."""
    pixels = None if data is None else jpegs.decode(data)
    if pixels is None:
        return by_pillow(source, size)
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(square(Image.fromarray(pixels), size))


def by_pillow(source: Source, size: int | None) -> Pixels:
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


def decode_all(sources: Sequence[Source], size: int | None) -> np.ndarray:
    """All images as one array: (N, S, S, 3) uint8; it lies in memory as (N, 3, S, S), which is how it is stored.

    Raises:
        ConfigError: when sizes differ or are not square and no size was asked for.
    """
    side = size or len(decode(sources[0], None))
    pixels = np.empty((len(sources), 3, side, side), dtype=np.uint8)
    cores = os.cpu_count() or 1
    share = max(1, min(HANDFUL, len(sources) // (16 * cores)))  # so that none is left alone with the last ones for long
    handfuls = [slice(start, start + share) for start in range(0, len(sources), share)]
    with ThreadPoolExecutor(cores) as pool:  # images are decoded outside the interpreter's lock
        one_square(set().union(*pool.map(partial(put, sources, size, pixels, Turns()), handfuls)))
    return pixels.transpose(0, 2, 3, 1)


def put(
    sources: Sequence[Source], size: int | None, pixels: np.ndarray, turns: Turns, rows: slice
) -> set[tuple[int, int]]:
    """Some images into their rows of (N, 3, S, S) if they are of that size; the sizes that were seen."""
    encoded = turns.take(lambda: [plain(source, size) for source in sources[rows]])
    images = [decoded(source, data, size) for source, data in zip(sources[rows], encoded, strict=True)]
    shapes: set[tuple[int, int]] = {image.shape[:2] for image in images}
    if shapes == {pixels.shape[2:]}:
        pixels[rows] = np.stack(images).transpose(0, 3, 1, 2)
    return shapes


class Turns:
    """One thread reads while the others decode, as long as reading is fast.

    Opening small files lets go of the interpreter's lock three times a file, for less time than it takes to hand that
    lock over, so two threads that both read are slower than one. Where files are slow they wait for them side by side.
    """

    def __init__(self) -> None:
        self.lock, self.slow = Lock(), False

    def take(self, read: Callable[[], list[bytes | None]]) -> list[bytes | None]:
        if self.slow:
            return read()
        with self.lock:
            begun = time.perf_counter()
            found = read()
            self.slow = time.perf_counter() - begun > SLOW * len(found)
        return found


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
