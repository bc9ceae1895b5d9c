"""Plain JPEGs by simplejpeg, which takes an eighth of Pillow's time for small ones and gives the same pixels.

Plain is JFIF as most programs write it: 8 bits, grey or colour, whole, without notes on orientation or colour. Of
everything else, of images that `Image.draft` would decode reduced, and of anything that simplejpeg complains about,
nothing is given here, and it is Pillow's to decode or to refuse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import metadata
from io import BytesIO

import numpy as np
from PIL import Image

PACKAGE = "simplejpeg"
FIRST_BYTES = 1 << 16  # bytes that are asked for at once: more than a small image has, so one call reads it
LARGE_PIXELS = 1 << 20  # pixels from which on decoding costs so much more than calls that Pillow is as good
BEGIN, END = b"\xff\xd8", b"\xff\xd9"
SCAN = 0xDA  # the marker behind which pixels stand
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, by Huffman codes
PASSED = frozenset((*FRAMES, 0xC4, 0xDB, 0xDD, 0xE0, 0xFE))  # those; tables, restart interval, JFIF, comment

Decoder = Callable[[bytes], np.ndarray]


@cache
def decoder() -> Decoder | None:
    """simplejpeg's decoder where it is installed and agrees with the Pillow beside it, to the bit; else None."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    for card in cards():
        with Image.open(BytesIO(card)) as image:
            if not np.array_equal(decode_jpeg(card), np.asarray(image.convert("RGB"))):
                return None
    found: Decoder = decode_jpeg
    return found


def cards() -> list[bytes]:
    """A small noisy picture as a JPEG of every kind that counts: each subsampling of colour, progressive, grey."""
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (19, 21, 3)).astype(np.uint8))
    kinds = [(noise, {"subsampling": s, "progressive": p}) for s in range(3) for p in (False, True)]
    return [saved(image, **options) for image, options in [*kinds, (noise.convert("L"), {})]]


def saved(image: Image.Image, **options: object) -> bytes:
    """A picture as a JPEG."""
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def named() -> str:
    """Which decoder JPEGs have here, for people."""
    if decoder():
        return f"small JPEGs by {PACKAGE} {metadata.version(PACKAGE)}, the rest by Pillow {metadata.version('pillow')}"
    return f"all images by Pillow {metadata.version('pillow')}"


def is_plain(data: bytes, reduced: int | None) -> bool:
    """Whether this is a JPEG for `decode`; not if both its sides have at least `reduced` pixels."""
    sides = frame(data)
    if sides is None or min(sides) < 1 or sides[0] * sides[1] > LARGE_PIXELS:
        return False
    return not reduced or min(sides) < reduced


def decode_plain(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 of a plain JPEG; None where simplejpeg is not to be used, or has anything to say against it."""
    decode_jpeg = decoder()
    try:
        return decode_jpeg(data) if decode_jpeg else None
    except Exception:  # whatever it is, Pillow has the last word
        return None


def frame(data: bytes) -> tuple[int, int] | None:
    """Height and width of a plain JPEG, from its header; None for anything else."""
    if not (data.startswith(BEGIN) and data.endswith(END)):
        return None
    at, sides, end = 2, None, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == SCAN:
            return sides
        if marker not in PASSED:
            return None
        if marker in FRAMES:
            if sides or data[at + 4] != 8 or data[at + 9] not in (1, 3):  # a second frame; bits; components
                return None
            sides = (data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8])
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All of a file; two calls of the system fewer than `Path.read_bytes`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        blocks = [os.read(descriptor, FIRST_BYTES)]
        while len(blocks[-1]) == FIRST_BYTES:
            blocks.append(os.read(descriptor, FIRST_BYTES))
    finally:
        os.close(descriptor)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)
