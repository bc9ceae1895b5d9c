"""The one shape of head that lightly has no class for: layers counted, and a batch norm at the end or not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from rela_cli.methods.from_lightly import ProjectionHead


def projection_head(
    feature_dim: int, hidden_dim: int, projection_dim: int, layers: int = 2, norm_last: bool = False
) -> nn.Module:
    """(B, feature_dim) -> (B, projection_dim): linear `layers` without bias, batch norm and ReLU between them.

    `norm_last` ends it with a batch norm without scale and shift, as SimSiam's and MoCo v3's authors do; those of
    Barlow Twins and VICReg have none there, and their losses would give a last bias no gradient.
    """
    blocks: list[tuple[Any, ...]] = [
        (width_in, width, nn.BatchNorm1d(width), nn.ReLU())
        for width_in, width in pairwise([feature_dim] + [hidden_dim] * (layers - 1))
    ]
    norm = nn.BatchNorm1d(projection_dim, affine=False) if norm_last else None
    return ProjectionHead([*blocks, (hidden_dim, projection_dim, norm, None, False)])  # type: ignore[no-any-return]
