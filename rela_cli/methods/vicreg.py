"""VICReg (Bardes, Ponce and LeCun 2022, arXiv 2105.04906)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.methods.base import Method
from rela_cli.methods.heads import projection_head
from rela_cli.methods.losses import vicreg


class VICReg(Method):
    """Projections of two views agree, keep a deviation of 1 in each dimension, and are uncorrelated (Algorithm 1).

    `invariance`, `variance` and `covariance` are the paper's lambda, mu and nu. lightly, like the authors' released
    code, halves the variance term, which the paper does not: hence the 2 below.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        projector_layers: int,
        hidden_dim: int,
        projection_dim: int,
        invariance: float,
        variance: float,
        covariance: float,
        view1: View,
        view2: View,
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = projection_head(feature_dim, hidden_dim, projection_dim, projector_layers)
        self.weights = (invariance, 2 * variance, covariance)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z1, z2 = (self.projector(h) for h in self.represent(views))  # (B, projection_dim)
        return vicreg(z1, z2, *self.weights)
