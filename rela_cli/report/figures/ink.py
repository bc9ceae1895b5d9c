"""Colours that can be read on their ground: WCAG's contrast, and the nearest shade that has enough of it."""

from __future__ import annotations

TEXT_CONTRAST = 4.5  # the least contrast that WCAG AA wants of small text
INK_STEPS = 50  # from a colour to black or white

Colour = tuple[float, ...]  # red, green, blue, from 0 to 1


def readable_ink(colour: str, ground: str) -> str:
    """`colour` as it is, or as little darker or lighter as gives it the contrast with its ground; both as #rrggbb."""
    start, end = rgb(colour), (0.0,) * 3 if luminance(rgb(ground)) > 0.18 else (1.0,) * 3
    for step in range(INK_STEPS + 1):
        share = step / INK_STEPS
        shade = hexed(tuple((1 - share) * one + share * other for one, other in zip(start, end, strict=True)))
        if contrast(shade, ground) >= TEXT_CONTRAST:
            return colour if step == 0 else shade
    return hexed(end)


def contrast(one: str, other: str) -> float:
    """From 1, the same, to 21, black on white."""
    dark, light = sorted(luminance(rgb(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Colour) -> float:
    """The relative luminance of an sRGB colour, from 0 to 1."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def rgb(colour: str) -> Colour:
    """Red, green and blue of #rrggbb."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def hexed(colour: Colour) -> str:
    """#rrggbb."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
