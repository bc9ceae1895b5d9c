"""The feature map of each family of networks: pooled, it is the representation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from rela_cli.errors import ConfigError
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.learners.maps import feature_map, map_shape, maps_of, watched
from rela_cli.learners.resnet import resnet18, resnet50
from rela_cli.learners.timm import timm_model, vit
from rela_cli.learners.torchvision import torchvision_model

POOLED: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {  # a network, and the map of 64 px
    "resnet18": (lambda: resnet18("cifar", 4), (32, 8, 8)),
    "resnet50, its own stem": (lambda: resnet50("imagenet", 4), (128, 2, 2)),
    "the 6n+2 family": (lambda: cifar_resnet(8, 4), (16, 16, 16)),
    "timm, a ResNet": (lambda: timm_model("resnet10t", 64), (512, 2, 2)),
    "torchvision, MobileNet": (lambda: torchvision_model("mobilenet_v2", 64), (1280, 2, 2)),
    "torchvision, ShuffleNet": (lambda: torchvision_model("shufflenet_v2_x0_5", 64), (1024, 2, 2)),
}


@pytest.mark.parametrize("name", POOLED)
def test_pooled_it_is_the_representation(name: str) -> None:
    make, shape = POOLED[name]
    network, images = make().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = feature_map(network, images), network(images)
    assert tuple(found.shape[1:]) == shape == map_shape(network, 64)
    torch.testing.assert_close(found.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_transformer_are_a_grid() -> None:
    network, images = vit("vit_tiny_patch16_224", 16, 64).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens, found = network.forward_features(images), feature_map(network, images)  # type: ignore[operator]
    assert tuple(found.shape) == (2, 192, 4, 4)
    assert torch.equal(found[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2]), "row 1, column 2, behind the class token"
    swin = timm_model("swin_tiny_patch4_window7_224", 64).eval()
    with torch.no_grad():
        assert tuple(feature_map(swin, images).shape) == (2, 768, 2, 2), "channels last in timm's Swin"


def test_torchvisions_transformer_and_densenet() -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert tuple(feature_map(torchvision_model("vit_b_32", 64).eval(), images).shape) == (1, 768, 2, 2)
        assert tuple(feature_map(torchvision_model("densenet121", 64).eval(), images).shape) == (1, 1024, 2, 2)


def test_a_network_without_a_map_is_named() -> None:
    with pytest.raises(ConfigError, match="Linear has no feature map that is known here"):
        feature_map(nn.Linear(3, 3), torch.randn(2, 3))


def test_the_towers_of_clip() -> None:
    """Tokens of the transformer behind its last norm, without the class token; what CLIP's ResNets pool."""
    images = torch.randn(2, 3, 64, 64)
    tower = VisionTransformer(64, 16, width=32, layers=1, heads=2, mlp_ratio=2.0, output_dim=8).eval()
    seen: list[Tensor] = []
    tower.ln_post.register_forward_hook(lambda _, __, found: seen.append(found))
    resnet = ModifiedResNet((1, 1, 1, 1), output_dim=8, heads=2, image_size=64, width=8).eval()
    with torch.no_grad():
        assert torch.equal(feature_map(tower, images).flatten(2).transpose(1, 2), seen[0][:, 1:])
        found = feature_map(resnet, images)
        assert tuple(found.shape) == (2, 256, 2, 2)
        assert torch.equal(resnet.attnpool(found), resnet(images))
        assert tower(images).shape == (2, 8), "it gives its vector as before"


@pytest.mark.parametrize("make", [lambda: resnet18("cifar", 4), lambda: vit("vit_tiny_patch16_224", 16, 64)])
def test_maps_of_a_pass_that_is_made_anyway(make: Callable[[], nn.Module]) -> None:
    """Of two views in one pass and in two; afterwards nothing is noted any more."""
    network, views = make().eval(), list(torch.randn(2, 3, 3, 64, 64))
    with torch.no_grad():
        wanted = [feature_map(network, view) for view in views]
        with watched(network) as seen:
            network(torch.cat(views))
        with watched(network) as apart:
            vectors = [network(view) for view in views]
        network(views[0])
    for found in (maps_of(network, seen, 2), maps_of(network, apart, 2)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1 and len(apart) == 2 and vectors[0].ndim == 2
