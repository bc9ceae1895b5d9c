"""Folders and tables say which model and which data; what a run is found by stays its hash."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rela_cli.commands import table
from rela_cli.config.compose import compose
from rela_cli.config.schema import Config
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from rela_cli.report.results.prior_names import prior_names
from rela_cli.store.names import called, run_called, slug


@pytest.mark.parametrize(
    ("group", "name", "options", "expected"),
    [
        ("learner", "timm", {"model": "convnext_nano"}, "convnext_nano"),
        ("learner", "resnet18", {"width": 64}, "resnet18"),
        ("prior", "checkpoint", {"model": "timm:convnext_tiny.fb_in1k", "weights": "x.pth"}, "convnext_tiny.fb_in1k"),
        ("prior", "exported", {"weights": "/there/my net.pt2"}, "my net"),
        ("prior", "exported", {"weights": "0" * 64}, "exported"),
        ("prior", "open_clip", {"model": "ViT-B-32"}, "ViT-B-32"),
        ("prior", "clip_vitb16", {"model": "ViT-B-16"}, "clip_vitb16"),
        ("dataset", "image_folder", {"root": "/data/photos/"}, "photos"),
        ("dataset", "packed", {"root": "s3://bucket/cats"}, "cats"),
        ("dataset", "parquet", {"root": "data", "hub": "zh-plus/tiny-imagenet"}, "tiny-imagenet"),
        ("dataset", "torchvision", {"dataset": "SVHN", "root": "data"}, "SVHN"),
        ("dataset", "cifar10", {"root": "data"}, "cifar10"),
    ],
)
def test_names(group: str, name: str, options: dict[str, str], expected: str) -> None:
    assert called(group, name, options) == expected


def test_names_in_a_folder_keep_its_parts_apart() -> None:
    assert slug("ViT-B-32") == "ViT_B_32"
    assert slug("../my photos (2)") == "my_photos_2"
    assert slug("-- ") == "unnamed"
    assert slug("x" * 41) == "x" * 40, "a folder's name has several of them, and file systems end at 255 bytes"
    assert run_called("my_photos-ViT_B_32-convnext_nano-byol-b0.5-s0-61d4788a") == "my_photos byol 61d4788a"


def test_a_folder_here_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "holiday").mkdir()
    monkeypatch.chdir(tmp_path / "holiday")
    assert called("dataset", "image_folder", {"root": "."}) == "holiday"


def photos(root: Path) -> Path:
    for split, count in (("train", 3), ("test", 1)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.RandomState(i + 9 * (name == "b")).randint(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def setup(tmp_path: Path, root: Path, *words: str) -> Config:
    if not (tmp_path / "one.pth").exists():
        torch.save(cifar_resnet(20, 4).state_dict(), tmp_path / "one.pth")
    own = [f"dataset.root={root}", f"prior.weights={tmp_path}/one.pth", f"paths.outputs={tmp_path}/outputs"]
    short = ["batch_size=6", "epochs=1", "learner.width=4", "probe.protocols=[knn]", "runtime.threads=1"]
    return compose(["dataset=image_folder", "prior=checkpoint", *own, *short, *words])


def test_a_run_is_found_whatever_it_was_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By an older version, or before the photos were moved: the hash is the same, so nothing is trained again."""
    root = photos(tmp_path / "my photos")
    made = setup(tmp_path, root)
    known = Run(made).hash
    assert pipeline.run(made).status == "run"
    folder = Run(made).folder
    assert folder.name == f"my_photos-resnet20-resnet18-simclr-b1-s0-{Run(made).hash}"
    table.main([f"{tmp_path}/outputs", "--format", "csv"])
    shown = capsys.readouterr().out
    assert "my photos" in shown
    assert "resnet20" in shown
    assert "image_folder" not in shown
    old = folder.with_name(f"image_folder-checkpoint-resnet18-simclr-b1-s0-{Run(made).hash}")
    folder.rename(old)
    assert Run(made).folder == old
    assert pipeline.run(made).status == "found"
    shutil.move(root, tmp_path / "elsewhere")
    moved = setup(tmp_path, tmp_path / "elsewhere")
    assert Run(moved).hash == known
    assert (pipeline.run(moved).status, pipeline.run(moved).folder) == ("found", old)


def test_two_files_of_one_model_are_told_apart() -> None:
    def result(weights: str, **called: str) -> dict[str, object]:
        settings = {"prior": {"name": "checkpoint", "model": "resnet20", "weights": weights}}
        return {"prior": "checkpoint", "settings": settings, **({"called": called} if called else {})}

    one, two = result("1" * 64, prior="resnet20", file="a.pth"), result("2" * 64, prior="resnet20", file="b.pth")
    assert prior_names([one, one], {}) == ["resnet20", "resnet20"]
    assert prior_names([one, two], {}) == ["resnet20 a.pth", "resnet20 b.pth"]
    assert prior_names([one, two], {"resnet20 a.pth": "MoCo"}) == ["MoCo", "resnet20 b.pth"]
    assert prior_names([result("1" * 64)], {}) == ["resnet20"], "a result by an older version"
