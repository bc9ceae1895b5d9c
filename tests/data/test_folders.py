"""Splits, decoding of every kind of image, folders as people have them, and what moves a fingerprint."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli.data.base import stratified
from rela_cli.data.batches.cache import channel_stats, read_split, read_stats, write_images
from rela_cli.data.datasets import Cifar10, Digits, Fake, digits_table
from rela_cli.data.decoding.images import Blob, decode, decode_all
from rela_cli.data.decoding.modes import to_rgb
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.store.entries import Entry
from tests.conftest import ROOT, Rela

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------- stratified parts


@pytest.mark.parametrize("keep", [1, 2, 7, 50, 99, 100])
def test_a_part_keeps_each_class_in_its_proportion(keep: int) -> None:
    labels = np.random.RandomState(1).permutation(np.repeat([0, 1, 2, 3], [10, 20, 30, 40]))
    chosen = stratified(labels, 100, keep, seed=0)
    assert len(chosen) == len(set(chosen)) == keep
    assert list(chosen) == sorted(chosen)
    counts = np.bincount(labels[chosen], minlength=4)
    assert (np.abs(counts - keep * np.array([0.1, 0.2, 0.3, 0.4])) < 1).all()


def test_a_part_depends_on_its_seed_only() -> None:
    labels = np.arange(1000) % 10
    first = stratified(labels, 1000, 100, seed=0)
    np.random.seed(5)
    assert np.array_equal(first, stratified(labels, 1000, 100, seed=0))
    assert len(set(first) & set(stratified(labels, 1000, 100, seed=1))) < 40


def test_a_part_without_labels_is_uniform() -> None:
    chosen = np.concatenate([stratified(None, 1000, 100, seed) for seed in range(50)])
    assert abs(chosen.mean() - 499.5) < 5 * 289 / 5000**0.5
    assert len(set(stratified(None, 1000, 100, 0))) == 100


@pytest.mark.parametrize("keep", [None, 100, 5000])
def test_no_limit_keeps_everything_in_order(keep: int | None) -> None:
    assert np.array_equal(stratified(np.arange(100) % 3, 100, keep, 0), np.arange(100))


# --------------------------------------------------------------------------------------------------------- digits, fake


def test_digits_split_is_fixed_and_stratified() -> None:
    digits = Digits(**{**COMMON, "flip": False})
    train, train_labels = digits.load("train")
    test, test_labels = digits.load("test")
    assert (train.shape, test.shape) == ((1437, 8, 8, 3), (360, 8, 8, 3))
    assert train.dtype == test.dtype == np.uint8
    assert (train.min(), train.max()) == (0, 255)
    for digit in range(10):
        whole = (train_labels == digit).sum() + (test_labels == digit).sum()
        assert abs((test_labels == digit).sum() - whole * 360 / 1797) < 1
    assert [digest(a) for a in (train, train_labels, test, test_labels)] == [
        "90e9b946e2f7b056",
        "c6998aee152d051a",
        "a0338df879a57c48",
        "bbdde94425e6bd92",
    ]


def test_digits_are_read_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as its own loader's, which is still there for the day that the file is not."""
    gray, labels = digits_table()
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    theirs, truth = digits_table()
    assert np.array_equal(gray, theirs) and np.array_equal(labels, truth)
    program = "import sys; from rela_cli.data.datasets import digits_table; digits_table()"
    program += "; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_digits_are_all_there_once() -> None:
    from sklearn.datasets import load_digits

    digits = Digits(**COMMON)
    together = np.concatenate([digits.load(split)[0][..., 0] for split in ("train", "test")]).reshape(1797, -1)
    original = np.rint(load_digits().data * 255 / 16)
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(map(bytes, original.astype(np.uint8)))


def test_limits_of_train_and_test_are_apart() -> None:
    limited = Digits(**{**COMMON, "limit": 100, "test_limit": 50})
    assert (limited.count("train"), limited.count("test")) == (100, 50)
    assert (len(limited.load("train")[0]), len(limited.load("test")[0])) == (100, 50)
    assert np.array_equal(Digits(**{**COMMON, "limit": 100}).load("test")[0], Digits(**COMMON).load("test")[0])
    whole = {bytes(image) for image in Digits(**COMMON).load("train")[0]}
    assert {bytes(image) for image in limited.load("train")[0]} <= whole
    other = Digits(**{**COMMON, "limit": 100, "seed": 1})
    assert not np.array_equal(other.load("train")[0], limited.load("train")[0])
    assert other.identity != limited.identity


def test_fake() -> None:
    fake = Fake(n=40, n_test=12, size=6, classes=3, **COMMON)
    images, labels = fake.load("train")
    assert images.shape == (40, 6, 6, 3)
    assert np.bincount(labels).tolist() == [14, 13, 13]
    assert np.array_equal(images, Fake(n=40, n_test=12, size=6, classes=3, **COMMON).load("train")[0])
    assert not np.array_equal(images[:12], fake.load("test")[0])
    assert not np.array_equal(
        images, Fake(n=40, n_test=12, size=6, classes=3, **{**COMMON, "seed": 1}).load("train")[0]
    )


def test_a_fake_image_is_a_function_of_its_index() -> None:
    """Whatever is asked for beside it, and however many there are; a billion of them take no room."""
    few, many = (Fake(n=n, n_test=12, size=6, classes=3, **COMMON) for n in (40, 10**9))
    rows = np.array([39, 7, 39])
    assert np.array_equal(few.images("train", rows), few.load("train")[0][rows])
    assert np.array_equal(many.images("train", rows), few.images("train", rows))
    assert np.array_equal(many.prefetch("train", rows)(1), few.image("train", 7))
    assert (few.on_disk, many.on_disk) == (False, True)
    assert not np.array_equal(many.image("train", 10**9 - 1), many.image("train", 10**9 - 2))


def test_fake_images_are_noise_with_a_tint() -> None:
    images, labels = Fake(n=3000, n_test=1, size=8, classes=3, **COMMON).load("train")
    assert labels is not None
    tints = [images[labels == label].astype(float).mean((0, 1, 2)) for label in range(3)]
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(tints, 2)) > 5
    noise = images - images[labels == 0].min(axis=(0, 1, 2))
    assert abs(noise[labels == 0].astype(float).mean() - 79.5) < 0.5, "0 to 159, each as often"
    pixels = images[labels == 0].reshape(1000, -1).astype(float)
    assert np.abs(np.corrcoef(pixels[:, :50].T) - np.eye(50)).max() < 5 / 1000**0.5
    assert np.abs(np.corrcoef(pixels[:50]) - np.eye(50)).max() < 0.6, "the tint alone is shared"


# ------------------------------------------------------------------------------------------------------------- decoding

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


# -------------------------------------------------------------------------------------------------------------- folders


def paint(path: Path, colour: int, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (colour, 0, 255 - colour)).save(path)


def folder(root: Path, files: list[str]) -> Path:
    for i, name in enumerate(files):
        paint(root / name, (37 * i) % 256)
    return root


def image_folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(root=str(root), **{**COMMON, "image_size": None, **options})


BOTH = ["train/b/0.png", "train/b/1.png", "train/a/x.png", "HELD/a/y.png", "HELD/b/z.png", "HELD/b/w.PNG"]


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Test"])
def test_train_with_test_or_val(tmp_path: Path, held_out: str) -> None:
    dataset = image_folder(folder(tmp_path, [name.replace("HELD", held_out) for name in BOTH]))
    assert dataset.classes == ["a", "b"]
    assert dataset.why_unprobed is None
    assert (dataset.count("train"), dataset.count("test")) == (3, 3)
    images, labels = dataset.load("train")
    assert labels.tolist() == [0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [74, 0, 37]
    assert dataset.load("test")[1].tolist() == [0, 1, 1]


def test_test_goes_before_val(tmp_path: Path) -> None:
    names = [*BOTH, "val/a/1.png"]
    assert image_folder(folder(tmp_path, [n.replace("HELD", "test") for n in names])).count("test") == 3


def test_classes_only_and_loose_files_train_but_cannot_be_probed(tmp_path: Path) -> None:
    classes = image_folder(folder(tmp_path / "classes", ["a/0.png", "b/1.png"]))
    assert classes.load("train")[1].tolist() == [0, 1]
    assert "no train/ with a test/ or val/ beside it" in str(classes.why_unprobed)
    loose = image_folder(folder(tmp_path / "loose", ["0.png", "1.png", "more/2.png"]))
    assert loose.classes is None
    assert loose.load("train")[1] is None
    assert loose.count("train") == 3
    assert loose.count("test") == 0
    assert "no class folders" in str(loose.why_unprobed)


def test_unlabelled_train_beside_a_labelled_test(tmp_path: Path) -> None:
    dataset = image_folder(folder(tmp_path, ["train/0.png", "train/1.png", "test/a/0.png"]))
    assert (dataset.count("train"), dataset.count("test")) == (2, 0)
    assert dataset.why_unprobed


def test_sub_folders_belong_to_their_class(tmp_path: Path) -> None:
    dataset = image_folder(folder(tmp_path, ["train/a/deep/er/0.png", "train/b/1.png", "test/b/0.png"]))
    assert dataset.load("train")[1].tolist() == [0, 1]
    assert dataset.load("test")[1].tolist() == [1]


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.root=FOLDER"):
        ImageFolder(root=None, image_size=None, **COMMON)
    with pytest.raises(MissingError, match=r"nowhere is not a folder \(looked at /"):
        image_folder(Path("nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no images in"):
        image_folder(tmp_path / "empty").count("train")
    folder(tmp_path / "strange", ["train/a/0.png", "test/a/0.png", "test/z/0.png"])
    with pytest.raises(MissingError, match="classes that train lacks: z"):
        image_folder(tmp_path / "strange")
    folder(tmp_path / "gap", ["train/a/0.png", "test/a/0.png"])
    (tmp_path / "gap" / "train" / "nothing").mkdir()
    with pytest.raises(MissingError, match=r"gap/train/nothing: remove the folder or fill it"):
        image_folder(tmp_path / "gap").count("train")


def test_other_files_are_ignored(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/0.png"])
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    (tmp_path / "train" / "README.md").write_text("x")
    assert image_folder(tmp_path).count("train") == 2


def test_every_suffix_that_pillow_reads_counts(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/0.png"])
    image = Image.new("RGB", (8, 8))
    suffixes = ["jp2", "tga", "jpe", "pnm", "dib", "ico", "pcx", "JPG"]
    for suffix in suffixes:
        image.save(tmp_path / "train" / "a" / f"x.{suffix}")
    image.save(tmp_path / "train" / "a" / "x.apng", "PNG")
    assert image_folder(tmp_path, image_size=8).load("train")[0].shape == (11, 8, 8, 3)


def test_names_with_a_dot_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png", "test/a/0.png"])
    before = image_folder(tmp_path)
    assert before.count("train") == 2
    said = capsys.readouterr().err
    paint(tmp_path / "train" / ".ipynb_checkpoints" / "0.png", 1)
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"Mac OS X")
    after = image_folder(tmp_path)
    assert (after.classes, after.count("train"), after.identity) == (["a", "b"], 2, before.identity)
    assert "2 whose names begin with a dot (train/.ipynb_checkpoints, train/a/._0.png)" in capsys.readouterr().err
    assert said == ""


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_beside_the_class_folders_is_named_and_decides_nothing(
    tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, [*[name.replace("HELD", "test") for name in BOTH], "extra/0.png"])
    paint(tmp_path / split / "preview.png", 5)
    dataset = image_folder(tmp_path)
    assert (dataset.count("train"), dataset.count("test"), dataset.why_unprobed) == (3, 3, None)
    assert dataset.load("train")[1].tolist() == [0, 1, 1]
    assert dataset.load("test")[1].tolist() == [0, 1, 1]
    said = capsys.readouterr().err
    assert f"one image beside the class folders ({split}/preview.png); the folders extra" in said


def test_a_test_folder_without_images_is_no_test_set(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/0.png", "train/b/1.png"])
    (tmp_path / "test" / "a").mkdir(parents=True)
    dataset = image_folder(tmp_path)
    assert (dataset.count("train"), dataset.count("test")) == (2, 0)
    assert "no images in" in str(dataset.why_unprobed) and "sort the images into" in str(dataset.why_unprobed)


def test_names_under_another_locale(tmp_path: Path) -> None:
    """Classes whose names are not ASCII, where Python takes the file system to be ASCII: the same dataset."""
    folder(tmp_path, ["train/café/0.png", "train/日本/1.png", "test/café/ü.png"])
    program = (
        "import sys; from rela_cli.data.folders import ImageFolder; from rela_cli.store.files import fingerprint\n"
        f"d = ImageFolder(root={str(tmp_path)!r}, image_size=8, limit=None, test_limit=None, seed=0, flip=True)\n"
        "images, labels = d.load('test'); print(sys.getfilesystemencoding(), d.labels('train').tolist(), labels)\n"
        "print(images.mean(), fingerprint(d.identity))"
    )
    found = []
    for locale in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **locale}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split(maxsplit=1))
    assert [encoding for encoding, _ in found] == ["utf-8", "ascii"]
    assert found[0][1] == found[1][1]


def test_a_limit_takes_of_every_class(tmp_path: Path) -> None:
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(10)] + ["test/a/0.png", "test/b/0.png"]
    dataset = image_folder(folder(tmp_path, names), limit=6)
    assert dataset.count("train") == 6
    assert np.bincount(dataset.load("train")[1]).tolist() == [3, 3]


def test_what_moves_the_fingerprint(tmp_path: Path) -> None:
    root = folder(tmp_path / "here", [name.replace("HELD", "test") for name in BOTH])
    first = image_folder(root).identity
    assert image_folder(root).identity == first
    assert image_folder(Path(os.path.relpath(root))).identity == first
    (root / "train" / "notes.txt").write_text("not an image")
    assert image_folder(root).identity == first
    moved = tmp_path / "there"
    shutil.copytree(root, moved)  # keeps times
    assert image_folder(moved).identity == first, "the place of a dataset does not count"
    assert image_folder(root, limit=2).identity != first
    assert image_folder(root, seed=1).identity != first
    assert image_folder(root, image_size=4).identity != first
    paint(root / "train" / "a" / "new.png", 9)
    added = image_folder(root).identity
    assert added != first
    target = root / "train" / "a" / "x.png"
    before = target.stat()
    paint(target, 99)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = image_folder(root).identity
    assert changed not in (first, added)
    (root / "test" / "b" / "z.png").rename(root / "test" / "a" / "z.png")
    assert image_folder(root).identity != changed


# --------------------------------------------------------------------------------------------------- cifar10, the cache


def test_cifar10_that_is_not_there(tmp_path: Path) -> None:
    dataset = Cifar10(root=str(tmp_path / "data"), download=False, **COMMON)
    assert (dataset.count("train"), dataset.count("test")) == (50_000, 10_000)
    with pytest.raises(MissingError, match=r"CIFAR-10 is not in dataset.root=.*cifar-10-batches-py"):
        dataset.load("train")


def test_cifar10_that_is_not_there_ends_with_3(rela: Rela) -> None:
    done = rela("extract", "dataset=cifar10", "dataset.download=false", "prior=random", "prior.width=4")
    assert done.returncode == 3, done.stderr
    assert "cifar-10-batches-py" in done.stderr


def test_a_missing_root_ends_with_3_and_leaves_nothing(rela: Rela, tmp_path: Path) -> None:
    done = rela("train", "dataset=image_folder", "dataset.root=nowhere")
    assert (done.returncode, "nowhere is not a folder" in done.stderr) == (3, True)
    assert not list((tmp_path / "outputs").glob("*/*")) if (tmp_path / "outputs").exists() else True


def test_channel_statistics_are_numpys() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (50, 9, 9, 3), dtype=np.uint8)
    pixels[..., 2] = 7
    found = channel_stats(pixels)
    exact = pixels.astype(np.float64) / 255
    assert found["mean"] == pytest.approx(exact.mean((0, 1, 2)), abs=1e-12)
    assert found["std"][:2] == pytest.approx(exact.std((0, 1, 2))[:2], abs=1e-12)
    assert found["std"][2] == 1e-3, "a constant channel must not be divided by zero"


def test_the_cache_holds_what_was_decoded(tmp_path: Path) -> None:
    dataset = Fake(n=20, n_test=6, size=4, classes=2, **COMMON)
    entry = Entry("images", {"a": 1}, tmp_path)
    assert entry.make(lambda folder: write_images(dataset, folder))
    images, labels = dataset.load("train")
    split, stats = read_split(entry, "train"), read_stats(entry)
    assert split is not None and split.labels is not None
    assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), images)
    assert np.array_equal(split.labels.numpy(), labels)
    assert (stats.size, stats.mean.shape) == (4, (3,))
    assert stats.mean.numpy() == pytest.approx(images.mean((0, 1, 2)) / 255, abs=1e-6)


def test_errors_are_ours() -> None:
    assert issubclass(MissingError, RelaError)
    assert (MissingError.exit_code, ConfigError.exit_code) == (3, 2)
