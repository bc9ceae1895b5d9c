"""Backbones: shapes, names, and coming back from a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from rela_cli import load_backbone
from rela_cli.config import Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.learners.build import build_backbone, feature_dim

RESNET = {"name": "resnet18", "_target_": "rela_cli.learners.resnet.resnet18", "stem": "cifar", "width": 4}
CIFAR = {"name": "cifar_resnet", "_target_": "rela_cli.learners.cifar_resnet.cifar_resnet", "depth": 20, "width": 8}
VIT = {"name": "vit_s16", "_target_": "rela_cli.learners.timm.vit", "model": "vit_tiny_patch16_224", "patch_size": 4}


@pytest.mark.parametrize(("tree", "width"), [(RESNET, 32), ({**RESNET, "stem": "imagenet"}, 32), (CIFAR, 32)])
def test_a_backbone_says_its_width(tree: dict[str, object], width: int) -> None:
    backbone = build_backbone(Part.from_tree(tree), 0, 32).eval()
    assert feature_dim(backbone) == width
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, width)


def test_the_cifar_stem_keeps_small_images_large() -> None:
    small, large = (build_backbone(Part.from_tree({**RESNET, "stem": stem}), 0, 32) for stem in ("imagenet", "cifar"))
    sizes = [net.layer1(net.maxpool(net.conv1(torch.zeros(1, 3, 32, 32)))).shape[-1] for net in (small, large)]
    assert sizes == [8, 32]


@pytest.mark.parametrize("tree", [RESNET, {**RESNET, "stem": "imagenet"}, CIFAR, VIT])
@pytest.mark.parametrize("size", [3, 7, 14])
def test_local_crops_fit_in(tree: dict[str, object], size: int) -> None:
    backbone = build_backbone(Part.from_tree(tree), 0, 32)
    assert backbone(torch.randn(4, 3, size, size)).isfinite().all()


@pytest.mark.parametrize("depth", [7, 18, 21])
def test_depths_outside_the_family_are_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match=f"depth={depth} is not of the 6n"):
        build_backbone(Part.from_tree({**CIFAR, "depth": depth}), 0, 32)


def run_folder(folder: Path, tree: dict[str, object]) -> torch.nn.Module:
    """What a finished run leaves, as far as its backbone goes."""
    backbone = build_backbone(Part.from_tree(RESNET), 3, 32)
    save_file(backbone.state_dict(), folder / "backbone.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"learner": tree, "seed": 0}))
    return backbone


def test_a_backbone_comes_back_from_its_run(tmp_path: Path) -> None:
    made, x = run_folder(tmp_path, RESNET).eval(), torch.randn(2, 3, 16, 16)
    loaded = load_backbone(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(x), made(x))


def test_a_folder_without_a_backbone_is_named(tmp_path: Path) -> None:
    run_folder(tmp_path, RESNET)
    with pytest.raises(MissingError, match=r"backbone_target\.safetensors does not exist"):
        load_backbone(tmp_path, "target")


def test_a_handed_over_run_cannot_run_what_it_likes(tmp_path: Path) -> None:
    run_folder(tmp_path, {**RESNET, "_target_": "os.mkdir", "path": str(tmp_path / "ran")})
    with pytest.raises(ConfigError, match=r"wants to run os\.mkdir"):
        load_backbone(tmp_path)
    assert not (tmp_path / "ran").exists()
