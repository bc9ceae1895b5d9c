"""BYOL (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.methods.base import Average, Method
from rela_cli.methods.from_lightly import BYOLPredictionHead, BYOLProjectionHead, NegativeCosineSimilarity


class BYOL(Method):
    """The online network predicts the target network's projection of the other view (paper, equation 2).

    loss "squared_distance" is the paper's, |p - z|^2 of unit vectors, summed over both directions; "negative_cosine" is
    the mean of -cos(p, z) over both, as the public ReLA code has it. Its gradient is a quarter of the other's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: int | None,
        projection_dim: int,
        ema: float,
        ema_schedule: str,
        view1: View,
        view2: View,
        loss: str = "squared_distance",
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = BYOLProjectionHead(feature_dim, hidden_dim or 2 * feature_dim, projection_dim)
        self.predictor = BYOLPredictionHead(projection_dim, hidden_dim or 2 * feature_dim, projection_dim)
        self.target = Average(self.online(), ema, ema_schedule)
        self.similarity = NegativeCosineSimilarity()
        self.loss = loss

    def online(self) -> nn.Sequential:
        """What the target network is a running average of."""
        return nn.Sequential(self.backbone, self.projector)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z1, z2 = self.target(views)  # (B, projection_dim), no gradient
        p1, p2 = (self.predictor(self.projector(h)) for h in self.represent(views))
        both = self.similarity(p1, z2) + self.similarity(p2, z1)
        return both / 2 if self.loss == "negative_cosine" else 4 + 2 * both  # |p - z|^2 of unit vectors is 2 - 2 cos

    def after_step(self, progress: float) -> None:
        self.target.follow(self.online(), progress)

    def networks(self) -> dict[str, nn.Module]:
        return {"online": self.backbone, "target": self.target.network[0]}  # type: ignore[dict-item, index]
