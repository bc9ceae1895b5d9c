"""Any picture of Pillow's to RGB, by one rule for each mode.

8 bits a channel: as Pillow converts it, alpha and transparent colours over white. 16 bits (I;16 and its variants, and
mode I of PNG and PPM, whose files say that they have 16 bits): divided by 257. 32 bits (I) and floats (F) do not say
which value is white, so the largest value decides: up to 1 (floats only) 1 is white, up to 255 it is 255, up to 65,535
it is 65,535. Anything else, negative values and NaN among them, is refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

DEEP = 257  # 65535 / 255
SAY_16_BITS = ("PNG", "PPM")  # formats in which mode I holds 0 to 65535
GREY_STEPS = {"1": 255, "L;2": 85, "L;4": 17}  # between neighbours, by what Pillow calls the way they are packed


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB.

    Raises:
        ValueError: a mode that has no way to RGB, or values outside of what its rule allows.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return from_grey(image)
    if image.has_transparency_data:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def from_grey(image: Image.Image) -> Image.Image:
    """One channel of more than 8 bits; a transparent grey becomes white."""
    values = np.asarray(image).astype(np.float64)
    levels = (values / step(image, values)).round().clip(0, 255).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        levels[values == key] = 255
    return Image.fromarray(levels).convert("RGB")


def step(image: Image.Image, values: np.ndarray) -> float:
    """How much of an image's values one of 255 levels is.

    Raises:
        ValueError: values from which this cannot be told.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SAY_16_BITS):
        return DEEP
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"its values go from {low:g} to {high:g}, and white is unknown; save it with values up to 255")
    if high > 255:
        return DEEP
    return 1 / 255 if image.mode == "F" and high <= 1 else 1


def settle_key(image: Image.Image) -> None:
    """Before the pixels are loaded: the transparent colour of a PNG as its pixels will have it.

    The file has it in its own depth, 1 to 16 bits, and Pillow compares it with pixels of 8.
    """
    key, packed = image.info.get("transparency"), getattr(image, "tile", None)
    raw = packed[0][3] if image.format == "PNG" and packed else None
    if raw in GREY_STEPS and isinstance(key, int) and key <= 255 // GREY_STEPS[raw]:
        image.info["transparency"] = key * GREY_STEPS[raw]
    if raw == "RGB;16B" and isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)
