"""`rela embed` that was killed goes on behind its last whole block, and leaves what an undisturbed one leaves."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rela_cli import cli
from tests.factories import pixels
from tests.promises.harness import call

WORDS = ("embed", "prior=random", "prior.width=4", "photos", "--image-size", "8", "runtime.block_size=4", "--to")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """21 images, 6 blocks; one file in the second block is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(pixels(20, 8)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    (folder / "05b.png").write_bytes(b"no image")
    return tmp_path


def test_killed_it_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert cli.main([*WORDS, "whole.npz"]) == 0
    for point in ("rows.before_line:3", "f.after_write"):
        assert call(place, *WORDS, "f.npz", env={"RELA_FAULT": point}) == -signal.SIGKILL
        assert not (place / "f.npz").exists()
    assert "resumed at block 2 of 6" in (place / "out").read_text()
    assert call(place, *WORDS, "f.npz", env={"RELA_FAULT": "f.after_replace"}) == -signal.SIGKILL
    assert call(place, *WORDS, "f.npz", env={"RELA_FAULT": ""}) == 0
    assert "resumed at block 6 of 6" in (place / "out").read_text()
    whole, found = np.load(place / "whole.npz"), np.load(place / "f.npz")
    assert len(found["files"]) == 20 and "05b.png" not in found["files"]
    assert all(np.array_equal(whole[key], found[key]) for key in ("files", "features"))
    assert not list(place.glob(".f.npz*"))
