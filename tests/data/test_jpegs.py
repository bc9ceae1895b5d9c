"""The fast decoder of plain JPEGs against Pillow: the same pixels to the bit, and the same refusals."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rela_cli.data.batches.cache import channel_stats
from rela_cli.data.decoding import jpegs
from rela_cli.data.decoding.images import Blob, ReadingTurns, decode, decode_all, decode_with_pillow, fast_jpeg_bytes
from rela_cli.errors import ConfigError, MissingError

needed = pytest.mark.skipif(jpegs.decoder() is None, reason="simplejpeg is not installed")


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours under noise, so that every table of a JPEG has something to do."""
    random = np.random.RandomState(seed)
    coarse = Image.fromarray(random.randint(0, 256, (3, 4, 3)).astype(np.uint8)).resize((width, height))
    noise = random.randint(-30, 31, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def outcome(work: Callable[[], np.ndarray]) -> Any:
    """Pixels, or the message of the refusal."""
    try:
        return work().tolist()
    except MissingError as error:
        return str(error)


KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "own tables": {"optimize": True, "quality": 30},
    "restart markers": {"restart_marker_blocks": 2},
    "comment": {"comment": b"a comment"},
    "finest": {"quality": 100, "subsampling": 0},
    "RGB as it is": {"keep_rgb": True, "subsampling": 0},
}


@needed
@pytest.mark.parametrize("size", [None, 16, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_jpegs_are_pillows_to_the_bit(kind: str, size: int | None) -> None:
    for height, width in ((32, 32), (33, 47), (1, 1), (7, 90), (100, 200), (200, 130)):
        for mode in ("RGB", "L") if kind != "RGB as it is" else ("RGB",):
            blob = Blob("it", jpeg(picture(height, width).convert(mode), **KINDS[kind]))
            assert outcome(lambda b=blob: decode(b, size)) == outcome(lambda b=blob: decode_with_pillow(b, size))
            fast = fast_jpeg_bytes(blob, size)
            assert fast is None or jpegs.decode_plain(fast) is not None, "and simplejpeg has nothing against it"
            reduced = size is not None and min(height, width) >= 8 * size
            assert (fast is None) == (reduced or kind == "RGB as it is"), "what is plain goes the fast way"


def exif(orientation: int) -> Image.Exif:
    notes = Image.Exif()
    notes[0x0112] = orientation
    return notes


@needed
def test_everything_else_is_pillows(tmp_path: Path) -> None:
    image = picture(20, 30)
    whole = jpeg(image)
    others = {
        "turned.jpg": jpeg(image, exif=exif(6)),
        "upright.jpg": jpeg(image, exif=exif(1)),
        "profile.jpg": jpeg(image, icc_profile=b"no profile, but a segment"),
        "print.jpg": jpeg(image.convert("CMYK")),
        "empty.jpg": b"",
        "page.jpg": b"<html>404</html>",
        "cut.jpg": whole[: len(whole) // 2],
        "cut with an end.jpg": whole[: len(whole) // 2] + jpegs.END,
        "header.jpg": whole[:300] + jpegs.END,
        "no end.jpg": whole[:-2],
        "behind the end.jpg": whole + b"more",
    }
    for name, data in others.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert fast_jpeg_bytes(path, None) is None, name
        assert outcome(lambda p=path: decode(p, None)) == outcome(lambda p=path: decode_with_pillow(p, None)), name
    assert decode(tmp_path / "turned.jpg", None).shape == (30, 20, 3)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(MissingError, match=r"folder\.jpg cannot be read"):
        decode(tmp_path / "folder.jpg", None)


@needed
def test_a_png_under_a_jpegs_name_and_the_other_way_round(tmp_path: Path) -> None:
    image = picture(16, 16)
    image.save(tmp_path / "a.jpg", "PNG")
    image.save(tmp_path / "b.png", "JPEG")
    assert np.array_equal(decode(tmp_path / "a.jpg", None), np.asarray(image))
    assert np.array_equal(decode(tmp_path / "b.png", None), decode_with_pillow(tmp_path / "b.png", None))


@needed
def test_damaged_jpegs_are_what_pillow_makes_of_them() -> None:
    """Single bytes anywhere in a file are changed: the same pixels, or the same refusal, in every case."""
    random = np.random.RandomState(0)
    fast = 0
    for i in range(600):
        data = bytearray(jpeg(picture(24, 24, i), progressive=i % 3 == 0, subsampling=i % 3))
        data[random.randint(2, len(data) - 2)] = random.randint(256)
        blob = Blob("it", bytes(data))
        fast += fast_jpeg_bytes(blob, None) is not None
        assert outcome(lambda b=blob: decode(b, None)) == outcome(lambda b=blob: decode_with_pillow(b, None)), i
    assert fast > 100


def test_many_images_are_one_array_in_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(150):
        (tmp_path / f"{i:03}.jpg").write_bytes(jpeg(picture(12, 12, i)))
    paths = sorted(tmp_path.iterdir())
    found = decode_all(paths, None)
    assert found.shape == (150, 12, 12, 3)
    assert found.transpose(0, 3, 1, 2).flags.c_contiguous, "stored as it lies"
    assert np.array_equal(found, [decode_with_pillow(path, None) for path in paths])
    monkeypatch.setattr(jpegs, "decoder", lambda: None)
    assert np.array_equal(found, decode_all([str(path) for path in paths], None))
    (tmp_path / "070.jpg").write_bytes(jpeg(picture(12, 13)))
    with pytest.raises(ConfigError, match=r"12x12, 13x12: say dataset\.image_size"):
        decode_all(paths, None)
    assert decode_all(paths, 8).shape == (150, 8, 8, 3)


def test_slow_files_are_waited_for_side_by_side() -> None:
    """Two readers that can only be done together: taking turns they would never be."""
    turns, meet = ReadingTurns(), threading.Barrier(2, timeout=20)
    assert turns.take(lambda: [b"fast"]) == [b"fast"]
    assert not turns.slow
    turns.take(lambda: time.sleep(0.01) or [b"slow"])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: turns.take(lambda: meet.wait() is None or [bytes([i])]), range(2)))
    assert found == [[b"\0"], [b"\1"]]


def test_a_decoder_with_other_pixels_is_not_used(tmp_path: Path) -> None:
    """Some Pillows are built upon other libraries, whose pixels differ by a level here and there."""
    (tmp_path / "simplejpeg.py").write_text("import numpy\ndef decode_jpeg(data): return numpy.zeros((19, 21, 3))\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from rela_cli.data.decoding import jpegs; print(jpegs.named())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("all images by Pillow"), done.stderr


def test_statistics_are_counts_whatever_the_layout() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (300, 5, 5, 3)).astype(np.uint8)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    levels = np.arange(256) / 255
    counts = [np.bincount(pixels[..., c].reshape(-1), minlength=256) for c in range(3)]
    means = [float(n @ levels / n.sum()) for n in counts]
    assert channel_stats(pixels)["mean"] == channel_stats(planes)["mean"] == means, "the same bits"
    assert channel_stats(pixels) == channel_stats(planes)
