"""timm's, torchvision's and open_clip's networks as priors: built and filled as the libraries do it themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models._api import WeightsEnum

from rela_cli.config.parts import instantiate
from rela_cli.errors import ConfigError
from rela_cli.learners.timm import timm_model
from rela_cli.learners.torchvision import published_model
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.loading import load_whole
from rela_cli.priors.reading import read_state
from rela_cli.weights.locate import located
from tests.factories import config, pixels, stats_of

IMAGES = pixels(2, 32)
State = dict[str, Tensor]


def prior(*overrides: str) -> NetworkPrior:
    made: NetworkPrior = instantiate(located(config(*overrides).prior), data=stats_of(IMAGES), allow=())
    return made.eval()


@torch.no_grad()
def features(made: nn.Module, images: Tensor = IMAGES) -> Tensor:
    return made(images)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------- torchvision


def as_published(name: str, weights: WeightsEnum) -> nn.Module:
    """What torchvision's own builder makes with `weights=`, but for the numbers."""
    nothing: Any = lambda *_, **__: {}  # noqa: E731
    with patch.object(WeightsEnum, "get_state_dict", nothing), patch.object(nn.Module, "load_state_dict", nothing):
        return models.get_model(name, weights=weights)


def facts(network: nn.Module) -> Iterator[tuple[str, object]]:
    """Everything about a network that is no tensor."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str | tuple) and not key.startswith("_"):
                yield f"{name}.{key}", value


def test_no_model_of_torchvision_has_other_arguments_with_weights_than_ours() -> None:
    """googlenet's and inception's transform_input comes with `weights=` alone. One model a file: they share code."""
    files = {models.get_model_builder(name).__module__: name for name in reversed(models.list_models(module=models))}
    assert len(files) > 15
    for name in files.values():
        weights = next(iter(models.get_model_weights(name)))
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            theirs = dict(facts(as_published(name, weights)))
            ours = dict(facts(published_model(name, weights.transforms().crop_size[0])))
        differing = {key for key in ours if key in theirs and ours[key] != theirs[key]}
        assert not differing - {".aux_logits"}, (name, weights.name)


def test_googlenet_scales_its_images_as_torchvision_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = models.googlenet(weights=None, aux_logits=True, init_weights=False)
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        theirs.train()(torch.randn(4, 3, 64, 64))  # running statistics that are not 0 and 1
    torch.save(theirs.state_dict(), tmp_path / "g.pth")
    theirs.eval().transform_input, theirs.fc = True, nn.Identity()
    made = prior("prior=torchvision", "prior.model=googlenet", f"prior.weights={tmp_path}/g.pth", "prior.image_size=64")
    images = torch.stack([made.preprocess(image[None])[0] for image in IMAGES])
    with torch.no_grad():
        expected = theirs(images)
    assert (features(made) - expected).norm() < 1e-4 * expected.norm()


def test_a_googlenet_of_ones_own_is_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("prior=checkpoint", "prior.model=torchvision:googlenet", "prior.weights=random", "prior.image_size=64")
    prior(*words)
    assert "scales its images itself: for those say prior=torchvision prior.model=googlenet" in capsys.readouterr().err


def test_densenets_published_names_are_translated_by_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = models.densenet121().eval()
    old = {re.sub(r"(denselayer\d+)\.(norm|conv)([12])\.", r"\1.\2.\3.", k): v for k, v in theirs.state_dict().items()}
    torch.save(old, tmp_path / "d.pth")
    words = ("prior.image_size=64", f"prior.weights={tmp_path}/d.pth")
    theirs.classifier = nn.Identity()
    for choice in (
        ["prior=torchvision", "prior.model=densenet121"],
        ["prior=checkpoint", "prior.model=torchvision:densenet121"],
    ):
        made = prior(*choice, *words)
        with torch.no_grad():
            assert torch.allclose(features(made), theirs(made.preprocess(IMAGES)), atol=1e-5)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_versions_of_layouts(tmp_path: Path, suffix: str) -> None:
    """mnasnet refuses a state dict without a version; a transformer's MLP takes its older names where there is none."""
    path = tmp_path / f"w.{suffix}"
    transformer = lambda: models.VisionTransformer(32, 16, 1, 2, 16, 32)  # noqa: E731
    for make in (lambda: models.mnasnet0_5(), transformer):
        theirs, ours = filled(make()), make()
        state = {older_mlp(key): value for key, value in theirs.state_dict().items()}
        save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
        load_whole(ours, read_state(path), path)
        own = ours.state_dict()
        assert all(torch.equal(value, own[key]) for key, value in theirs.state_dict().items())


@torch.no_grad()
def filled(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        parameter.fill_(0.5)
    return network


def older_mlp(key: str) -> str:
    return key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")


def test_squeezenet_as_a_prior() -> None:
    made = prior("prior=torchvision", "prior.model=squeezenet1_1", "prior.weights=random", "prior.image_size=64")
    assert features(made).shape == (2, 512)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["prior=torchvision", "prior.model=vit_b_32", "prior.image_size=100"],
            r"cannot be built at 100 px: ",
        ),
        (["prior=torchvision", "prior.model=alexnet", "prior.image_size=8"], r"alexnet cannot take images of 8 px: "),
        (["prior=timm", "prior.model=vit_tiny_patch16_224", "prior.image_size=8"], r"cannot take images of 8 px: "),
        (["prior=timm", "prior.model=vit_base_patch16_sapiens2"], r"not square; say prior.image_size="),
        (["prior=checkpoint", "prior.model=torchvision:alexnet", "prior.image_size=8"], r"take images of 8 px: "),
    ],
)
def test_a_size_that_a_prior_cannot_take_is_a_word_not_a_traceback(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prior(*words, "prior.weights=random")


# ---------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "efficientformer_l1", "swiftformer_xs", "levit_128s"]
)
def test_networks_with_two_classifiers(tmp_path: Path, name: str) -> None:
    import timm

    torch.manual_seed(3)
    theirs = timm.create_model(name)
    ours = timm_model(name, 224)
    load_whole(ours, theirs.state_dict(), name)
    own = ours.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in theirs.state_dict().items() if key in own)
    with pytest.raises(ConfigError, match=r"unexpected: other_head"):
        load_whole(ours, {**theirs.state_dict(), "other_head.weight": torch.zeros(2)}, name)


@pytest.mark.parametrize("crop", [1.15, 1.0, 0.875])
@pytest.mark.parametrize("size", [30, 31])
def test_a_crop_above_one_pads_as_center_crop_does(crop: float, size: int) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    made = Preprocess(size, (0, 0, 0), (1, 1, 1), crop, "bicubic")
    theirs = Compose([Resize(int(size / crop), InterpolationMode.BICUBIC), CenterCrop(size)])
    image = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(theirs(image))).permute(2, 0, 1)
    found = made(IMAGES[:1])[0] * 255
    assert found.shape == (3, size, size)
    assert (found - expected).abs().max() <= 1.001  # one step of a channel, where two halves tie


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"std": (1, 1, 0)}, "mean"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean"),
        ({"crop": 0}, "crop"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_facts_of_a_card_are_checked_as_a_users_are(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Say another prior.{name}="):
        Preprocess(**{"image_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1), **wrong})


# ---------------------------------------------------------------------------------------------------- names


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def small() -> State:
    return {k: v for k, v in Small().state_dict().items() if not k.endswith("num_batches_tracked")}


def test_what_is_too_much_is_named_at_once_with_the_key_that_does_it() -> None:
    """A MAE file with its decoder: one round, not five."""
    extra = {f"decoder_{name}.weight": torch.zeros(1) for name in ("embed", "norm", "pred")}
    state = {**small(), **extra, "mask_token": torch.zeros(1), "blocks.2.weight": torch.zeros(1)}
    with pytest.raises(ConfigError) as caught:
        load_whole(Small(), state, "mae.pth")
    asked = re.search(r"prior\.ignore=\[(.*)\]", str(caught.value))
    assert asked and asked[1] == "decoder_embed,decoder_norm,decoder_pred,mask_token,blocks.2"
    load_whole(Small(), state, "mae.pth", asked[1].split(","))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(4, dtype=torch.int64), "stem.bias int64 for float32"),
        (torch.zeros(4, dtype=torch.complex64), "stem.bias complex64 for float32"),
        (torch.zeros(4).to_sparse(), "stem.bias sparse_coo float32 on cpu for float32"),
        (torch.zeros(4, device="meta"), "stem.bias strided float32 on meta for float32"),
    ],
)
def test_numbers_of_another_kind_are_refused(value: Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=f"of another kind: {words}"):
        load_whole(Small(), {**small(), "stem.bias": value}, "w.pth")


@pytest.mark.parametrize("prefix", [None, "state_dict_ema", "state_dict_ema."])
def test_prefixes_and_inner_wrappers(tmp_path: Path, prefix: str | None) -> None:
    """DataParallel around a part, as in the oldest VGG files; and a prefix with or without its dot."""
    from rela_cli.priors.loading import trimmed

    state = small()
    wrapped = {k.replace("blocks.", "blocks.module."): v for k, v in state.items()}
    content = {f"state_dict_ema.{k}": v for k, v in wrapped.items()}
    found = trimmed(content, [*state], "w.pth", prefix)
    assert found.keys() == state.keys()
    assert all(torch.equal(value, found[key]) for key, value in state.items())


# ---------------------------------------------------------------------------------------------------- programs


class Grown(nn.Module):
    """Keeps gradients, as scripts of people do; `fixed` images at a time, as programs of people take."""

    def __init__(self, fixed: int = 0) -> None:
        super().__init__()
        self.conv, self.fixed = nn.Conv2d(3, 5, 3), fixed

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed:
            x = x.reshape(self.fixed, 3, 32, 32)
        return self.conv(x).relu_().mean((2, 3))


def test_a_script_with_gradients_is_tried_as_it_will_be_used(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Grown()), tmp_path / "m.pt")
    made = prior("prior=exported", f"prior.weights={tmp_path}/m.pt", "prior.image_size=32", "prior.trust=true")
    with torch.inference_mode():
        assert made(IMAGES).shape == (2, 5)
    assert not any(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(("fixed", "refused"), [(2, "1 image"), (1, "2 images")])
def test_a_program_for_one_number_of_images_is_refused(tmp_path: Path, fixed: int, refused: str) -> None:
    torch.jit.save(torch.jit.script(Grown(fixed)), tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=rf"cannot take {refused} of 32 px: .*batch dimension of any size"):
        prior("prior=exported", f"prior.weights={tmp_path}/m.pt", "prior.image_size=32", "prior.trust=true")


def test_real_weights_whole(tmp_path: Path) -> None:
    """Every tensor of a file that timm's authors would know, as it is in the file."""
    import os

    folder = os.environ.get("RELA_DATA")
    if not folder:
        pytest.skip("RELA_DATA is not set: the folder with weights/ is needed")
    path = Path(folder) / "weights" / "efficientnet_lite0-imagenet.safetensors"
    made, stored = prior("prior=timm", "prior.model=tf_efficientnet_lite0", f"prior.weights={path}"), load_file(path)
    own = made.backbone.state_dict()
    assert {key for key in stored if key not in own} == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(stored[key], value) for key, value in own.items() if key in stored)
