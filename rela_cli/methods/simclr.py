"""SimCLR (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.methods.base import Method
from rela_cli.methods.from_lightly import SimCLRProjectionHead
from rela_cli.methods.losses import nt_xent


class SimCLR(Method):
    """NT-Xent: each view has to find its other half among all views of the batch (paper, equation 1)."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: int | None,
        projection_dim: int,
        temperature: float,
        view1: View,
        view2: View,
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = SimCLRProjectionHead(feature_dim, hidden_dim or feature_dim, projection_dim)
        self.temperature = temperature

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z1, z2 = (self.projector(h) for h in self.represent(views))  # (B, projection_dim)
        return nt_xent(z1, z2, self.temperature)
