"""Colours that can be read on their ground: WCAG's contrast, and the nearest shade that has enough of it."""

from __future__ import annotations

TEXT_CONTRAST = 4.5  # the least contrast that WCAG AA wants of small text
INK_STEPS = 50  # from a colour to black or white


def readable_ink(colour: str, ground: str) -> str:
    """`colour` as it is, or as little darker or lighter as gives it the contrast with its ground; both as #rrggbb."""
    from matplotlib.colors import to_hex, to_rgb

    end = 0.0 if luminance(ground) > 0.18 else 1.0  # black or white
    for step in range(INK_STEPS + 1):
        share = step / INK_STEPS
        shade = to_hex([(1 - share) * part + share * end for part in to_rgb(colour)])
        if contrast(shade, ground) >= TEXT_CONTRAST:
            return colour if step == 0 else shade
    return shade


def contrast(one: str, other: str) -> float:
    """From 1, the same, to 21, black on white."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of an sRGB colour, from 0 to 1."""
    from matplotlib.colors import to_rgb

    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
