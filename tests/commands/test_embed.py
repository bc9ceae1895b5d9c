"""`rela embed`: every format holds what the network gives for each file, by name; nothing is left out in silence."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pyarrow import parquet
from torchvision.transforms import v2

from rela_cli import cli, load_backbone
from rela_cli.commands.embed.images import Square
from rela_cli.weights.run_folder import run_facts
from tests.factories import pixels
from tests.promises.helpers import WORDS, go, read

SIZES = {"a.png": (8, 8), "deep/b.jpg": (20, 11), "deep/er/ü.png": (9, 30), "deep/c.bmp": (64, 48)}
BROKEN = "deep/no.jpg"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of a tiny learner."""
    place = tmp_path_factory.mktemp("run") / "outputs"
    go(place, *WORDS)
    return place


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images in folders of any depth, one broken file, and one that is no image; we are beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    for number, (name, size) in enumerate(SIZES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = pixels(1, 64, seed=number)[0].permute(1, 2, 0).numpy()
        Image.fromarray(whole).resize(size).save(path)
    (folder / BROKEN).write_bytes(b"no image")
    (folder / "notes.txt").write_text("x")
    return folder


def run_features(outputs: Path, photos: Path) -> dict[str, np.ndarray]:
    """What the run's backbone gives for each file, by Pillow and torch alone."""
    folder = (outputs / "runs" / "latest").resolve()
    facts, backbone = run_facts(folder), load_backbone(folder)
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    side, found = facts["image_size"], {}
    for name in SIZES:
        image = ImageOps.fit(Image.open(photos / name).convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            found[name] = backbone((x - mean) / std)[0].numpy()
    return found


def from_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found = np.load(path)
    return dict(zip(found["files"], found["features"], strict=True)), json.loads(str(found["metadata"]))


def from_npy(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    names = Path(f"{path}.files.txt").read_text(encoding="utf-8").splitlines()
    return dict(zip(names, np.load(path), strict=True)), read(Path(f"{path}.json"))


def from_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", *(f"f{i}" for i in range(len(head) - 1))]
    return {row[0]: np.array(row[1:], dtype=np.float32) for row in rows}, read(Path(f"{path}.json"))


def from_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    table = parquet.read_table(path)
    rows = {row["file"]: np.array(row["embedding"], dtype=np.float32) for row in table.to_pylist()}
    return rows, json.loads(table.schema.metadata[b"rela"])


READERS: dict[str, Callable[[Path], tuple[dict[str, np.ndarray], dict[str, Any]]]] = {
    "npz": from_npz,
    "npy": from_npy,
    "csv": from_csv,
    "parquet": from_parquet,
}


@pytest.mark.parametrize("suffix", READERS)
def test_every_format_holds_the_runs_features_by_name(
    suffix: str, outputs: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(f"f.{suffix}")
    words = ["embed", "latest", "photos", "--to", str(path), "--outputs", str(outputs)]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "left out  1 that cannot be read: deep/no.jpg" in out
    assert "notes.txt" in err
    found, facts = READERS[suffix](path)
    expected = run_features(outputs, photos)
    assert list(found) == sorted(expected)
    for name, features in expected.items():
        np.testing.assert_allclose(found[name], features, rtol=1e-4, atol=1e-5)
    assert facts["run"] == (outputs / "runs" / "latest").resolve().name
    assert (facts["width"], facts["count"], list(facts["unreadable"])) == (32, 4, [BROKEN])
    assert facts["preprocessing"]["resize"] == facts["preprocessing"]["crop"] == 8
    assert facts["preprocessing"]["mean"] == run_facts(outputs / "runs" / "latest")["mean"]
    assert not list(Path().glob(".*")), "nothing of the way there is left"

    before = {file: file.stat().st_mtime_ns for file in Path().glob("f.*")}
    assert cli.main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in Path().glob("f.*")} == before


def test_another_file_is_not_replaced_unasked(outputs: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", "latest", "photos", "--to", "f.npy", "--outputs", str(outputs)]
    Path("f.npy").write_bytes(b"mine")
    assert cli.main(words) == 2
    assert "was not made by rela" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
    shutil.copy(photos / "a.png", photos / "new.png")
    assert cli.main(words) == 2
    assert "other files" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
    assert len(np.load("f.npy")) == 5


def test_a_prior_sees_what_its_library_shows_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's model with torchvision's own transforms, on images of every shape."""
    import timm

    model = timm.create_model("resnet10t", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    prior = ["prior=timm", "prior.model=resnet10t", f"prior.weights={tmp_path}/weights.pth", "prior.image_size=28"]
    prior += ["prior.crop=0.9", "prior.interpolation=bilinear", "prior.mean=[0.4,0.5,0.6]", "prior.std=[0.3,0.2,0.1]"]
    assert cli.main(["embed", *prior, "photos", "--to", "f.npz", "runtime.threads=1"]) == 0
    found, facts = from_npz(Path("f.npz"))
    mode = v2.InterpolationMode.BILINEAR
    fed = v2.Compose([v2.Resize(31, mode), v2.CenterCrop(28), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    normalize = v2.Normalize([0.4, 0.5, 0.6], [0.3, 0.2, 0.1])
    for name in SIZES:
        with torch.no_grad():
            expected = model(normalize(fed(Image.open(photos / name).convert("RGB")))[None])[0]
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-3, atol=1e-4)
    assert facts["preprocessing"] == {
        "resize": 31,
        "crop": 28,
        "interpolation": "bilinear",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.2, 0.1],
        "channels": "rgb",
    }


def test_a_run_at_another_size_sees_all_of_an_image(outputs: Path, photos: Path) -> None:
    run = (outputs / "runs" / "latest").resolve()
    words = ["embed", "prior=rela_run", f"prior.run={run}", "prior.image_size=16", "photos", "--to", "f.npz"]
    assert cli.main(words) == 0
    found, facts = from_npz(Path("f.npz"))
    assert (facts["preprocessing"]["resize"], facts["preprocessing"]["crop"]) == (16, 16)
    mean, std = (torch.tensor(run_facts(run)[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    image = ImageOps.fit(Image.open(photos / "deep/c.bmp").convert("RGB"), (16, 16), Image.Resampling.BICUBIC)
    with torch.no_grad():
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        expected = load_backbone(run)((x - mean) / std)[0].numpy()
    np.testing.assert_allclose(found["deep/c.bmp"], expected, rtol=1e-4, atol=1e-5)


def test_a_square_as_torchvision_cuts_it(photos: Path) -> None:
    for name in SIZES:
        theirs = v2.Compose([v2.Resize(31, v2.InterpolationMode.BICUBIC), v2.CenterCrop(28)])
        expected = np.asarray(theirs(Image.open(photos / name).convert("RGB")))
        assert np.array_equal(Square(31, 28, "bicubic")(photos / name), expected)


def test_a_prior_that_looks_at_images_is_fitted_to_these(photos: Path) -> None:
    words = ["embed", "prior=patches", "prior.patches=4", "photos", "--image-size", "16", "--to"]
    assert [cli.main([*words, f"{name}.npy"]) for name in "ab"] == [0, 0]
    assert np.load("a.npy").shape[0] == 4
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))


WRONG = {
    "embed": "say a folder of images",
    "embed latest": "say a folder of images",
    "embed latest photos": "say where to",
    "embed latest photos --to f.txt": "must end in one of .parquet",
    "embed latest photos --to f.npy --image-size 0": "--image-size=0 must be",
    "embed latest photos --to f.npy --network onlin": "did you mean online?",
    "embed latest photos --to f.npy dataset.root=x": "reads the images of FOLDER",
    "embed latest photos --to f.npy budget=0.5": "means nothing to rela embed",
    "embed prior=none photos --to f.npy": "prior=none is no network",
    "embed prior=patches photos --to f.npy": "say which, such as --image-size",
    "embed latest prior=patches photos --to f.npy": "say a folder of images",
    "embed latest photos --to f.npy --bacth 3": "unknown flag --bacth",
}
MISSING = {
    "embed nosuch photos --to f.npy": "no run nosuch",
    "embed latest nowhere --to f.npy": "nowhere is not a folder",
    "embed latest empty --to f.npy": "no images in empty",
    "embed latest broken --to f.npy": "none of 1 images in broken can be read: x.png",
    "embed latest photos --to f.npy --network target": "has no target network",
    "embed unfinished photos --to f.npy": "has no trained backbone: it is failed",
}


@pytest.mark.parametrize("words", [*WRONG, *MISSING])
def test_bad_input_is_one_screen(words: str, outputs: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/x.png").write_bytes(b"no")
    unfinished = outputs / "runs" / "unfinished"
    unfinished.mkdir(exist_ok=True)
    (unfinished / "manifest.json").write_text('{"status": "failed"}')
    status = cli.main([*words.split(), "--outputs", str(outputs)])
    error = capsys.readouterr().err
    assert status == (2 if words in WRONG else 3), error
    assert (WRONG | MISSING)[words] in error
    assert "Traceback" not in error and len(error.splitlines()) <= 8
    assert not Path("f.npy").exists()
