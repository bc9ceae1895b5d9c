"""Backbones: shapes, names, and coming back from a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rela_cli import load_backbone
from rela_cli.config.compose import compose
from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.learners.build import build_backbone, feature_dim, load_state, measured_width, saved_state, try_out
from rela_cli.learners.torchvision import torchvision_model
from rela_cli.pipeline import pipeline
from rela_cli.stages.train import write_backbone
from tests.promises.helpers import FAKE, SHORT

RESNET = {"name": "resnet18", "_target_": "rela_cli.learners.resnet.resnet18", "stem": "cifar", "width": 4}
CIFAR = {"name": "cifar_resnet", "_target_": "rela_cli.learners.cifar_resnet.cifar_resnet", "depth": 20, "width": 8}
VIT = {"name": "vit_s16", "_target_": "rela_cli.learners.timm.vit", "model": "vit_tiny_patch16_224", "patch_size": 4}


@pytest.mark.parametrize(("tree", "width"), [(RESNET, 32), ({**RESNET, "stem": "imagenet"}, 32), (CIFAR, 32)])
def test_a_backbone_says_its_width(tree: dict[str, object], width: int) -> None:
    backbone = build_backbone(Part.from_tree(tree), 0, 32).eval()
    assert feature_dim(backbone) == width
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, width)


def test_measuring_the_width_leaves_the_mode_as_it_was() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    for is_training in (True, False):
        assert measured_width(network.train(is_training), 8) == 5
        assert network.training == is_training


def test_convolutions_begin_with_the_variance_of_their_outputs() -> None:
    """2 / fan_out, as torchvision's ResNets (He et al. 2015, arXiv 1502.01852); fan_in would be twice or half of it."""
    backbone = build_backbone(Part.from_tree({**RESNET, "width": 16}), 0, 32)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels != module.out_channels:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.var().item() == pytest.approx(2 / fan_out, rel=0.3), name


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


# ------------------------------------------------------------------------------------------- what a run will ask of it


class Small(nn.Module):
    """A learner as people write them: it may give a tuple in training, share a parameter, or keep what is no tensor."""

    def __init__(self, tuple_in_training: bool = False, keeps: object = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.again = self.conv
        self.tuple_in_training, self.keeps = tuple_in_training, keeps

    def forward(self, x: Tensor) -> Any:
        found = self.again(x).mean((2, 3))
        return (found, found) if self.training and self.tuple_in_training else found

    def get_extra_state(self) -> object:
        return self.keeps

    def set_extra_state(self, state: object) -> None:
        self.keeps = state


LEARNER = Part("mine", "mine.Small")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            Small(tuple_in_training=True, keeps=torch.ones(1)),
            r"cannot be trained .*8 px: it gives a tuple for 2",
        ),
        (Small(keeps={"notes": 1}), r"cannot be saved .*_extra_state in its state is no tensor"),
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten()), r"cannot be trained on views of 8 px: .*[Kk]ernel size"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192).requires_grad_(False)), r"cannot be trained .*require grad"),
    ],
)
def test_what_fails_in_training_or_at_the_end_fails_at_the_start(made: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=f"learner=mine {words}"):
        try_out(made, LEARNER, [8])


def test_a_parameter_with_two_names_is_kept_under_both(tmp_path: Path) -> None:
    made = Small(keeps=torch.ones(1))
    try_out(made, LEARNER, [8])
    write_backbone(made, tmp_path / "backbone.safetensors")
    kept = load_file(tmp_path / "backbone.safetensors")
    assert kept.keys() == made.state_dict().keys()
    assert all(torch.equal(value, kept[key]) for key, value in made.state_dict().items())
    other = Small(keeps=torch.zeros(1))
    load_state(other, kept)
    assert torch.equal(other.conv.weight, made.conv.weight)
    assert other.keeps == 1


def test_trying_a_learner_out_changes_no_weight_and_no_random_number() -> None:
    made = build_backbone(Part.from_tree(RESNET), 3, 16)
    weights, state = {k: p.clone() for k, p in made.named_parameters()}, torch.random.get_rng_state()
    try_out(made, LEARNER, [16, 8])
    assert all(torch.equal(p, weights[k]) for k, p in made.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_versions_of_layouts_come_back_from_a_file() -> None:
    """mnasnet asks which version a state dict is of, and no safetensors file says so."""
    made = torchvision_model("mnasnet0_5", 32)
    load_state(made, saved_state(made))


def test_googlenet_trains_without_its_auxiliary_classifiers() -> None:
    made = torchvision_model("googlenet", 32).train()
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, 1024)
    assert not any(name.startswith("aux") for name in made.state_dict())


def test_squeezenets_classifier_is_a_convolution() -> None:
    assert torchvision_model("squeezenet1_1", 64).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def compose_and_run(outputs: Path, *words: str) -> None:
    pipeline.run(compose([*words, f"paths.outputs={outputs}"]))


def test_a_learner_that_cannot_take_the_images_leaves_no_run_folder(tmp_path: Path) -> None:
    words = [word for word in (*FAKE, *SHORT) if not word.startswith("learner.")]
    with pytest.raises(ConfigError, match=r"patch_size=5 does not divide images of 8 px; these do: 2, 4"):
        compose_and_run(tmp_path, *words, "prior=none", "learner=vit_s16", "learner.patch_size=5")
    assert not (tmp_path / "runs").exists()


def test_a_patch_size_that_fits_is_named() -> None:
    with pytest.raises(ConfigError, match=r"images of 30 px; these do: 2, 3, 5, 6, 10, 15$"):
        build_backbone(Part.from_tree(VIT), 0, 30)
