"""The feature map behind a network's representation: (B, 3, H, W) -> (B, D, h, w), for dense prediction and tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.errors import ConfigError
from rela_cli.learners.build import in_eval_mode

BEFORE = ("attnpool", "avgpool")  # of CLIP's ResNets, torchvision's networks and our own: what goes into it is the map
AFTER = (
    "encoder",
    "features",
    "layers",
    "conv5",
    "layer3",
)  # of those without it: what comes out of the first there is


def feature_map(network: nn.Module, images: Tensor) -> Tensor:
    """What a backbone makes of images just before it pools, as (B, D, h, w); tokens of a transformer as their grid.

    timm's networks and open_clip's transformers give it themselves; of the others it is seen where it passes by. Class
    and register tokens have no place in it.

    Raises:
        ConfigError: a network that has none, or none that is known here.
    """
    if isinstance(trunk := getattr(network, "trunk", None), nn.Module):  # open_clip's frame around a network of timm
        return feature_map(trunk, images)
    if hasattr(network, "forward_features"):
        return as_map(network, network.forward_features(images))  # type: ignore[operator]
    if hasattr(network, "output_tokens"):
        return as_map(network, patch_tokens(network, images))
    with watched(network) as seen:
        network(images)
    return as_map(network, seen[-1] if seen else None)


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each pass leaves here what it made just before it pooled: for `maps_of`; nothing of unknown networks."""
    seen: list[Tensor] = []
    place = next((name for name in (*BEFORE, *AFTER) if isinstance(getattr(network, name, None), nn.Module)), "")
    if hasattr(network, "forward_features"):
        undo = noting(network, seen)
    elif place in BEFORE:
        undo = getattr(network, place).register_forward_pre_hook(lambda _, given: seen.append(given[0])).remove
    elif place:
        undo = getattr(network, place).register_forward_hook(lambda _, __, output: seen.append(output)).remove
    else:
        undo = lambda: None  # noqa: E731
    try:
        yield seen
    finally:
        undo()


def noting(network: Any, seen: list[Tensor]) -> Callable[[], object]:
    """Let a network of timm note what it makes; what this gives ends that."""
    own = network.forward_features

    def forward_features(*given: Any, **named: Any) -> Tensor:
        seen.append(own(*given, **named))
        return seen[-1]

    network.forward_features = forward_features
    return lambda: delattr(network, "forward_features")


def maps_of(network: nn.Module, seen: Sequence[Tensor], views: int) -> list[Tensor]:
    """The map (B, D, h, w) of each of V views, which went through a network in one pass or in V."""
    return [part for found in seen for part in as_map(network, found).chunk(views // len(seen))]


def patch_tokens(network: Any, images: Tensor) -> Tensor | None:
    """Of open_clip's transformers, without the class token; None where others than patches are pooled."""
    if getattr(network, "attn_pool", None) is not None:
        return None
    before, network.output_tokens = network.output_tokens, True
    try:
        return network(images)[1]  # type: ignore[no-any-return]
    finally:
        network.output_tokens = before


def as_map(network: nn.Module, found: Tensor | None) -> Tensor:
    """(B, D, h, w) of what was seen of a network.

    Raises:
        ConfigError: there is none, or it is no grid.
    """
    if isinstance(found, Tensor) and found.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        found = found.movedim(-1, 1)
    if isinstance(found, Tensor) and found.ndim == 3:
        found = grid(found[:, prefix_tokens(network) :])
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise ConfigError(
            f"{type(network).__name__} has no feature map that is known here; our ResNets have one, and the networks "
            f"of timm, torchvision and open_clip that do not pool other things than places"
        )
    return found


def prefix_tokens(network: nn.Module) -> int:
    """How many tokens, of classes and registers, stand before those of the patches."""
    if hasattr(network, "forward_features"):
        return int(getattr(network, "num_prefix_tokens", 0))
    return 0 if hasattr(network, "output_tokens") else 1


def grid(tokens: Tensor) -> Tensor | None:
    """(B, T, D) tokens of a square image as (B, D, sqrt(T), sqrt(T)); None where T is no square."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side)) if side**2 == tokens.shape[1] else None


def map_shape(network: nn.Module, size: int) -> tuple[int, int, int]:
    """D, h and w of the map of an image of `size` px.

    Raises:
        ConfigError: as `feature_map`.
    """
    device = next(network.parameters()).device
    with torch.no_grad(), in_eval_mode(network):
        _, *shape = feature_map(network, torch.zeros(2, 3, size, size, device=device)).shape
    return shape[0], shape[1], shape[2]
