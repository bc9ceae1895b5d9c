"""The feature map behind a network's representation: (B, 3, H, W) -> (B, D, h, w), for dense prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rela_cli.errors import ConfigError

BEFORE = "avgpool"  # of torchvision's networks and our ResNets: what goes into it is the map
AFTER = (
    "encoder",
    "features",
    "layers",
    "conv5",
    "layer3",
)  # of those without it: what comes out of the first there is


def feature_map(network: nn.Module, images: Tensor) -> Tensor:
    """What a backbone makes of images just before it pools, as (B, D, h, w); tokens of a transformer as their grid.

    timm's networks give it themselves (`forward_features`); of the others it is seen where it passes by.

    Raises:
        ConfigError: a network that has none, or none that is known here.
    """
    if hasattr(network, "forward_features"):
        found: Tensor | None = network.forward_features(images)  # type: ignore[operator]
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        if isinstance(found, Tensor) and found.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
            found = found.movedim(-1, 1)
    else:
        found, prefix = passing(network, images), 1
    if isinstance(found, Tensor) and found.ndim == 3:
        found = grid(found[:, prefix:])
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise ConfigError(
            f"{type(network).__name__} has no feature map that is known here; segment takes our ResNets, "
            f"and the networks of timm and torchvision"
        )
    return found


def passing(network: nn.Module, images: Tensor) -> Tensor | None:
    """What passes into the pooling, or comes out of the last layer before it; None where neither is known."""
    seen: list[Tensor] = []
    place = next((name for name in (BEFORE, *AFTER) if isinstance(getattr(network, name, None), nn.Module)), None)
    if place is None:
        return None
    module = getattr(network, place)
    if place == BEFORE:
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        network(images)
    finally:
        handle.remove()
    return seen[-1] if seen else None


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
    with torch.no_grad():
        _, *shape = feature_map(network.eval(), torch.zeros(2, 3, size, size, device=device)).shape
    return shape[0], shape[1], shape[2]
