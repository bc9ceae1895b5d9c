"""From encoded images to pixels: decoding done right for every kind of image."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rela_cli.data.decoding import jpegs
from rela_cli.data.decoding.modes import settle_key, to_rgb
from rela_cli.errors import ConfigError, MissingError

Pixels = np.ndarray  # (H, W, 3) uint8
USUAL = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"])
NO_PICTURES = frozenset(["BUFR", "GRIB", "HDF5", "MPEG", "WMF"])  # what Pillow knows the name of and cannot decode
PROGRAMS = frozenset(["EPS"])  # what Pillow gives to another program, which runs it
DECODER = 3  # the rules by which files become pixels, for fingerprints. 2: far too large JPEGs reduced; 3: modes.py
HANDFUL = 256  # files a thread takes at a time, at most: handing over small ones one by one costs as much as decoding
SIDES = (8, 16, 32, 64, 96, 128, 160, 192, 224)  # usual sizes of what a network is shown
SLOW_SECONDS = 2e-4  # seconds a file from which on threads read side by side; from memory it takes 6e-6
JPEGS = (".jpg", ".jpeg", ".jfif")
EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation
ADDRESS = re.compile(r" <\S+ object at \w+>")  # Pillow names what it was given
REDUCING_GAP = 4  # a JPEG is decoded at 1/2, 1/4 or 1/8 only if that leaves this many times the size asked for


@dataclass(frozen=True)
class Blob:
    """An encoded image that is not a file of its own."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


ImageSource = Path | str | Blob

warnings.filterwarnings("ignore", module="PIL")  # they do not say which file they are about; what matters is raised


def decode(source: ImageSource, size: int | None) -> Pixels:
    """One image as RGB, upright, first frame, alpha over white; (size, size, 3) when a size is given.

    Raises:
        MissingError: naming the path, when it is not an image that Pillow can read.
    """
    return decode_bytes(source, fast_jpeg_bytes(source, size), size)


def fast_jpeg_bytes(source: ImageSource, size: int | None) -> bytes | None:
    """The bytes of a plain JPEG that the fast decoder may have; None for what is Pillow's to decode."""
    blob = isinstance(source, Blob)
    if jpegs.decoder() is None or not (blob or str(source).lower().endswith(JPEGS)):
        return None
    try:
        data = source.data if isinstance(source, Blob) else jpegs.read_file(source)
    except OSError:  # Pillow says it better
        return None
    return data if jpegs.is_plain(data, 2 * REDUCING_GAP * size if size else None) else None


def decode_bytes(source: ImageSource, data: bytes | None, size: int | None) -> Pixels:
    """An image, from the bytes that `fast_jpeg_bytes` gave for it, or by Pillow where that was None."""
    pixels = None if data is None else jpegs.decode_plain(data)
    if pixels is None:
        return decode_with_pillow(source, size)
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(square(Image.fromarray(pixels), size))


def decode_with_pillow(source: ImageSource, size: int | None) -> Pixels:
    """Any image."""
    try:
        with open_file(source) as file, open_image(file) as image:
            if size:
                image.draft(None, (REDUCING_GAP * size, REDUCING_GAP * size))  # for JPEG; others ignore it
            return np.asarray(square(to_rgb(upright(image)), size))
    except Exception as error:  # decoders raise whatever they like
        raise MissingError(f"{source} cannot be read as an image: {decoder_message(error)}") from error


def open_file(source: ImageSource) -> BinaryIO:
    """An open file. Given a path, Pillow would map some TIFFs, and garble those that are to be turned."""
    return BytesIO(source.data) if isinstance(source, Blob) else open(source, "rb")


def open_image(file: BinaryIO) -> Image.Image:
    """An image of which no pixel is decoded yet.

    Raises:
        OSError: not a file, or none that Pillow knows. ValueError: a file that another program would have to run.
    """
    image = Image.open(file)
    if image.format in PROGRAMS:
        image.close()
        raise ValueError(f"{image.format} is a program, and is not run; save what it draws as PNG")
    return image


def upright(image: Image.Image) -> Image.Image:
    """An image with its pixels, turned as its EXIF says.

    Nothing but the orientation is read of EXIF, and nothing is written, so EXIF that cannot be read harms no image.
    """
    settle_key(image)
    turn = orientation(image) if image.format == "TIFF" else None
    if turn:
        image.load_end = lambda: None  # type: ignore[attr-defined]  # a TIFF would turn itself, and rewrite its EXIF
    image.load()
    turned = image.transpose(EXIF_TURNS[turn]) if (turn := turn or orientation(image)) in EXIF_TURNS else image
    turned.format = image.format
    return turned


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; also 1 where there is none, or none that can be read."""
    for read in (image.getexif, lambda: image.tag_v2):  # type: ignore[attr-defined]
        with suppress(Exception):  # EXIF that is damaged raises whatever it likes
            turn = read().get(ExifTags.Base.Orientation)
            return int(turn) if turn in EXIF_TURNS else 1
    return 1


def has_sound_exif(image: Image.Image) -> bool:
    """Whether EXIF can be read, or there is none; of an image that was opened and not loaded."""
    try:
        image.getexif()
    except Exception:
        return False
    return True


def decoder_message(error: Exception) -> str:
    """What a decoder has to say, without addresses in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow knows no image format that it could be"
    return ADDRESS.sub("", str(error)) or type(error).__name__


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of all formats that Pillow can decode here."""
    Image.init()
    known = set(Image.OPEN) - NO_PICTURES - PROGRAMS | {"MPO"}  # which its decoder of JPEG reads
    return frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in known)


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in USUAL or suffix in suffixes()


def square(image: Image.Image, size: int | None) -> Image.Image:
    """Shorter side to `size` (bicubic, antialiased), then the centre; unchanged when `size` is None."""
    if size is None or image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def decode_all(sources: Sequence[ImageSource], size: int | None) -> np.ndarray:
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
        one_square(set().union(*pool.map(partial(decode_into, sources, size, pixels, ReadingTurns()), handfuls)))
    return pixels.transpose(0, 2, 3, 1)


def decode_into(
    sources: Sequence[ImageSource], size: int | None, pixels: np.ndarray, turns: ReadingTurns, rows: slice
) -> set[tuple[int, int]]:
    """Some images into their rows of (N, 3, S, S) if they are of that size; the sizes that were seen."""
    encoded = turns.take(lambda: [fast_jpeg_bytes(source, size) for source in sources[rows]])
    images = [decode_bytes(source, data, size) for source, data in zip(sources[rows], encoded, strict=True)]
    shapes: set[tuple[int, int]] = {image.shape[:2] for image in images}
    if shapes == {pixels.shape[2:]}:
        pixels[rows] = np.stack(images).transpose(0, 3, 1, 2)
    return shapes


class ReadingTurns:
    """Let one thread read while the others decode, as long as reading is fast.

    Opening a small file releases Python's lock three times, each time for less than it takes to hand the lock over. So
    two threads that both read are slower than one. Where files are slow, threads read side by side.
    """

    def __init__(self) -> None:
        self.lock, self.slow = Lock(), False

    def take(self, read: Callable[[], list[bytes | None]]) -> list[bytes | None]:
        if self.slow:
            return read()
        with self.lock:
            begun = time.perf_counter()
            found = read()
            self.slow = time.perf_counter() - begun > SLOW_SECONDS * len(found)
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
        shorter = sorted(min(shape) for shape in shapes)
        raise ConfigError(
            f"the images are {seen}: say dataset.image_size=SIZE to bring them to one square size, "
            f"such as dataset.image_size={suited(shorter[len(shorter) // 2])}"
        )


def suited(side: int) -> int:
    """A usual size for images whose shorter side is mostly `side`: not above it, and what networks are made for."""
    return max((usual for usual in SIDES if usual <= side), default=max(4, side))
