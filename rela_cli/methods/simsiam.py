"""SimSiam (Chen and He 2021, arXiv 2011.10566)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.methods.base import Method
from rela_cli.methods.from_lightly import NegativeCosineSimilarity, SimSiamPredictionHead
from rela_cli.methods.heads import projection_head


class SimSiam(Method):
    """Each view predicts the other's projection, through which no gradient flows (paper, equations 1 and 4)."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        projector_layers: int,
        hidden_dim: int,
        projection_dim: int,
        predictor_dim: int,
        view1: View,
        view2: View,
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = projection_head(feature_dim, hidden_dim, projection_dim, projector_layers, norm_last=True)
        self.predictor = SimSiamPredictionHead(projection_dim, predictor_dim, projection_dim)
        self.similarity = NegativeCosineSimilarity()

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z1, z2 = (self.projector(h) for h in self.represent(views))  # (B, projection_dim)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return (self.similarity(p1, z2.detach()) + self.similarity(p2, z1.detach())) / 2  # type: ignore[no-any-return]
