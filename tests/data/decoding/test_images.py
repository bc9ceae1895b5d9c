"""Decoding of every kind of image, value by value."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli.data.decoding.images import Blob, decode, decode_all
from rela_cli.data.decoding.modes import to_rgb
from rela_cli.errors import ConfigError, MissingError

RGB = np.array([[[200, 10, 60], [0, 0, 0]], [[255, 255, 255], [3, 128, 90]]], dtype=np.uint8)
GRAY = np.array([[0, 77], [128, 255]], dtype=np.uint8)
ALPHA = np.array([[255, 0], [128, 51]], dtype=np.uint8)


def over_white(color: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def check(path: Path, expected: np.ndarray, within: float = 0) -> None:
    found = decode(path, None)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).max() <= within


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_rgb(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    check(saved(tmp_path / f"a.{suffix}", Image.fromarray(RGB), **options), RGB)


def test_gray_and_gray_with_alpha(tmp_path: Path) -> None:
    check(saved(tmp_path / "l.png", Image.fromarray(GRAY)), three(GRAY))
    both = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(ALPHA)))
    check(saved(tmp_path / "la.png", both), over_white(three(GRAY)), 1)


def test_rgba_goes_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.dstack((RGB, ALPHA)))
    check(saved(tmp_path / "rgba.png", image), over_white(RGB), 1)


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), mode="P")
    image.putpalette(RGB.reshape(-1).tolist())
    return image


def test_palette(tmp_path: Path) -> None:
    check(saved(tmp_path / "p.png", palette_image()), RGB)
    check(saved(tmp_path / "p.gif", palette_image()), RGB)


def test_palette_with_transparency(tmp_path: Path) -> None:
    expected = RGB.copy()
    expected[0, 1] = 255
    check(saved(tmp_path / "one.png", palette_image(), transparency=1), expected)
    check(saved(tmp_path / "one.gif", palette_image(), transparency=1), expected)
    table = saved(tmp_path / "table.png", palette_image(), transparency=bytes([255, 0, 128, 51]))
    check(table, over_white(RGB), 1)


def test_palette_with_alpha(tmp_path: Path) -> None:
    image = palette_image().convert("PA")
    image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == "PA"
    assert np.abs(np.asarray(to_rgb(image)).astype(float) - over_white(RGB)).max() <= 1


def test_gray_and_colour_keyed_transparency(tmp_path: Path) -> None:
    expected = three(GRAY)
    expected[0, 1] = 255
    check(saved(tmp_path / "l.png", Image.fromarray(GRAY), transparency=77), expected)
    keyed = RGB.copy()
    keyed[0, 0] = 255
    check(saved(tmp_path / "rgb.png", Image.fromarray(RGB), transparency=(200, 10, 60)), keyed)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_gray_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    """Pillow's own conversion clips everything above 255 to white."""
    deep = np.array([[0, 257], [128 * 257, 65535]], dtype=np.uint16)
    check(saved(tmp_path / f"deep.{suffix}", Image.fromarray(deep)), three(np.array([[0, 1], [128, 255]])))


def test_16_bit_rounds(tmp_path: Path) -> None:
    deep = np.array([[128, 129], [385, 386]], dtype=np.uint16)  # halves of 257: 128.5, 385.5
    check(saved(tmp_path / "deep.png", Image.fromarray(deep)), three(np.array([[0, 1], [1, 2]])))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, bits: int, colour: int, row: bytes, key: tuple[int, ...]) -> bytes:
    """One row as the PNG standard has it, with a transparent colour of the same depth."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    body = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "bits", "colour", "row", "key", "expected"),
    [
        (2, 1, 0, bytes([0b01000000]), (1,), [0, 255]),
        (2, 1, 0, bytes([0b01000000]), (0,), [255, 255]),
        (4, 2, 0, bytes([0b00011011]), (1,), [0, 255, 170, 255]),
        (2, 4, 0, bytes([0x3C]), (3,), [255, 204]),
        (2, 16, 0, struct.pack(">2H", 1000, 20000), (1000,), [255, 78]),
        (2, 16, 2, struct.pack(">6H", 1000, 2000, 3000, 20000, 20000, 20000), (1000, 2000, 3000), [255, 78]),
    ],
)
def test_a_transparent_colour_of_any_depth(
    width: int, bits: int, colour: int, row: bytes, key: tuple[int, ...], expected: list[int]
) -> None:
    found = decode(Blob("it", png(width, bits, colour, row, key)), None)
    assert found.tolist() == [[[level] * 3 for level in expected]]


LEVELS = np.array([[0, 0.25], [0.5, 1]])


@pytest.mark.parametrize(
    ("kind", "white", "expected"),
    [
        ("float32", 1, [0, 64, 128, 255]),
        ("float32", 255, [0, 64, 128, 255]),
        ("float32", 65535, [0, 64, 128, 255]),
        ("int32", 255, [0, 63, 127, 255]),
        ("int32", 65535, [0, 64, 127, 255]),
    ],
)
def test_values_of_32_bits_by_their_largest(tmp_path: Path, kind: str, white: int, expected: list[int]) -> None:
    path = saved(tmp_path / "deep.tif", Image.fromarray((LEVELS * white).astype(kind)))
    assert decode(path, None)[..., 0].reshape(-1).tolist() == expected


@pytest.mark.parametrize("values", [[-1.0, 1], [0, 1e6], [0, float("nan")], [0, float("inf")]])
def test_values_without_a_white_are_refused(tmp_path: Path, values: list[float]) -> None:
    path = saved(tmp_path / "deep.tif", Image.fromarray(np.array([values], dtype=np.float32)))
    with pytest.raises(MissingError, match=r"deep\.tif cannot be read as an image: its values go from"):
        decode(path, None)


def test_formats_that_say_16_bits_are_believed(tmp_path: Path) -> None:
    """A dark PGM stays dark, whatever its largest value."""
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 100, 257))
    assert decode(tmp_path / "dark.pgm", None)[0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "RGBX"])
def test_other_colours(mode: str) -> None:
    colour = (200, 100, 50)
    found = to_rgb(Image.new("RGB", (1, 1), colour).convert(mode)).getpixel((0, 0))
    assert np.abs(np.array(found) - colour).max() <= 1


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_alpha_that_is_multiplied_in(mode: str) -> None:
    colour = (200, 100, 50) if mode == "RGBa" else (124, 124, 124)
    straight = Image.new("RGBA", (1, 1), (*colour, 128))
    image = (straight if mode == "RGBa" else straight.convert("LA")).convert(mode)
    expected = over_white(np.array(colour), np.array(128))
    assert np.abs(np.array(to_rgb(image).getpixel((0, 0))) - expected).max() <= 2


def test_a_program_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(MissingError, match="EPS is a program, and is not run"):
        decode(tmp_path / "x.png", None)


def test_1_bit(tmp_path: Path) -> None:
    check(saved(tmp_path / "bit.png", Image.fromarray(GRAY > 100)), three((GRAY > 100) * 255))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    check(saved(tmp_path / "cmyk.jpg", Image.fromarray(flat).convert("CMYK"), quality=100, subsampling=0), flat, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """The EXIF standard's eight ways to hold a camera, written as numpy operations on what is stored."""
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :16], stored[:8, 16:], stored[8:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "o.jpg", Image.fromarray(stored), exif=exif, quality=100, subsampling=0)
    check(path, upright[orientation](stored), 8)


def exif_block(orientation: int) -> bytes:
    """EXIF in which the camera's name is a number, as some cameras write it."""
    entries = struct.pack("<HHIf", 0x110, 11, 1, 1.5) + struct.pack("<HHII", 0x112, 3, 1, orientation)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_odd_exif_turns_the_image_all_the_same(tmp_path: Path, suffix: str) -> None:
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :16] = (250, 0, 0)
    options = {"lossless": True} if suffix == "webp" else {}
    if suffix == "tif":
        options = {"tiffinfo": {0x112: 6, 0x110: "x"}}
    else:
        options |= {"exif": exif_block(6), "quality": 100, "subsampling": 0}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(stored), **options)
    check(path, np.rot90(stored, -1), 8 if suffix == "jpg" else 0)


def test_exif_that_cannot_be_read_harms_no_image(tmp_path: Path) -> None:
    stored = np.full((8, 16, 3), 100, dtype=np.uint8)
    rubbish = b"Exif\0\0II*\0" + b"\xff" * 20
    for suffix, form in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        check(saved(tmp_path / f"a.{suffix}", Image.fromarray(stored), format=form, exif=rubbish), stored, 2)


def test_a_tiff_with_broken_exif_is_decoded(tmp_path: Path) -> None:
    """EXIF is said to lie five bytes before the file; the picture is to be turned."""
    tags = {256: 4, 257: 2, 258: 8, 259: 1, 262: 1, 273: 8, 274: 6, 277: 1, 278: 2, 279: 8}
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    rows.append(struct.pack("<HHIi", 0x8769, 9, 1, -5))
    stored = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    folder = struct.pack("<H", len(rows)) + b"".join(rows) + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 16) + stored.tobytes() + folder)
    check(tmp_path / "a.tif", three(np.rot90(stored, -1)))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    check(path, np.full((8, 8, 3), (250, 0, 0)))


def test_every_truncation_is_named(tmp_path: Path) -> None:
    """Whatever Pillow raises, and it raises many things, the user reads the path."""
    source = Image.fromarray(np.random.RandomState(0).randint(0, 255, (24, 24, 3), dtype=np.uint8))
    survived = 0
    for form, suffix in [
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("GIF", "gif"),
        ("TIFF", "tiff"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
    ]:
        buffer = io.BytesIO()
        source.save(buffer, form)
        whole = buffer.getvalue()
        path = tmp_path / f"broken.{suffix}"
        for length in range(0, len(whole) - 20, max(1, len(whole) // 40)):
            path.write_bytes(whole[:length])
            try:
                decode(path, None)
                survived += 1
            except MissingError as error:
                assert str(path) in str(error)
    assert survived == 0


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n"]
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd name ü.png"
    path.write_bytes(content)
    with pytest.raises(MissingError, match=r"odd name ü.png"):
        decode(path, 8)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "bomb.png", Image.new("L", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MissingError, match=r"bomb\.png"):
        decode(path, 8)


def test_resize_takes_the_centre_of_the_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = (10, 200, 30)
    path = saved(tmp_path / "wide.png", Image.fromarray(wide))
    found = decode(path, 10)
    assert found.shape == (10, 10, 3)
    assert np.abs(found[:, 2:8].astype(int) - (10, 200, 30)).max() <= 2
    expected = np.asarray(Image.fromarray(wide[:, 20:40]).resize((10, 10), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - expected)[:, 2:8].max() <= 2


@pytest.mark.parametrize("sizes", [[(8, 8), (8, 9)], [(8, 9), (8, 9)], [(8, 8), (16, 16)]])
def test_sizes_that_do_not_fit_together(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    paths = [saved(tmp_path / f"{i}.png", Image.new("RGB", size)) for i, size in enumerate(sizes)]
    with pytest.raises(ConfigError, match=r"dataset.image_size=SIZE"):
        decode_all(paths, None)
    assert decode_all(paths, 6).shape == (2, 6, 6, 3)
