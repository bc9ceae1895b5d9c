"""One vector an image, from whatever a network or a program gives: tokens, a map, or the vector itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rela_cli.errors import ConfigError

TOKENS, MAP = 3, 4  # dimensions of (B, T, D) and of (B, D, H, W)


class Pooled(nn.Module):
    """A network whose output is pooled: (B, 3, H, W) -> (B, D)."""

    def __init__(self, network: nn.Module, pool: str) -> None:
        super().__init__()
        self.network, self.pool = network, pool

    def forward(self, images: Tensor) -> Tensor:
        return vectors(self.network(images), self.pool)


def vectors(found: Any, pool: str) -> Any:
    """`cls`: the first of tokens (B, T, D); `mean`: over all tokens, or over a map (B, D, H, W); `none`: as it is.

    Raises:
        ConfigError: there is nothing to pool, no first token, or something to pool and nobody says how.
    """
    if not isinstance(found, Tensor) or (found.ndim not in (TOKENS, MAP) and pool == "none"):
        return found  # whoever asked for vectors says what else it is
    shape = tuple(found.shape)
    if pool == "mean" and found.ndim in (TOKENS, MAP):
        return found.mean(1) if found.ndim == TOKENS else found.mean((2, 3))
    if pool == "cls" and found.ndim == TOKENS:
        return found[:, 0]
    if found.ndim == TOKENS:
        raise ConfigError(f"it gives {shape}, tokens: say prior.pool=cls for the first one, prior.pool=mean for all")
    if found.ndim == MAP:
        raise ConfigError(
            f"it gives {shape}, a map: say prior.pool=mean" + " (a map has no class token)" * (pool == "cls")
        )
    raise ConfigError(f"it gives {shape}, which is nothing that prior.pool={pool} could pool; leave that out")
