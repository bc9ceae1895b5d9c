"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.distributed import collectives
from rela_cli.methods.base import Method
from rela_cli.methods.heads import projection_head

EPSILON = 1e-5  # added to a variance, as the authors' batch norm does


def standardize(z: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the batch of all ranks, so that ranks do not change the loss: (B, D) -> (B, D)."""
    z = z - collectives.averaged(z.mean(0))
    return z / (collectives.averaged(z.square().mean(0)) + EPSILON).sqrt()


class BarlowTwins(Method):
    """The cross-correlation of the two views' projections is pulled to the identity (paper, equations 1 and 2).

    lightly's own loss standardises each rank by itself; here the statistics are those of the whole batch.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        projector_layers: int,
        hidden_dim: int,
        projection_dim: int,
        redundancy: float,
        loss_scale: float,
        view1: View,
        view2: View,
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = projection_head(feature_dim, hidden_dim, projection_dim, projector_layers)
        self.redundancy, self.loss_scale = redundancy, loss_scale

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z1, z2 = (standardize(self.projector(h)) for h in self.represent(views))  # (B, D)
        c = collectives.averaged(z1.T @ z2 / len(z1))  # (D, D)
        invariance = (1 - c.diagonal()).square().sum()
        redundancy = (c - torch.diag(c.diagonal())).square().sum()
        return self.loss_scale * (invariance + self.redundancy * redundancy)
