"""MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import View
from rela_cli.distributed import collectives, ranks
from rela_cli.methods.base import Average, Method
from rela_cli.methods.heads import projection_head


class MoCoV3(Method):
    """A query has to find its own key among the batch's keys, which a momentum encoder makes (Algorithm 1).

    Without a queue: the other samples of the batch are the negatives, so a large batch is part of the method.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: int,
        projection_dim: int,
        temperature: float,
        ema: float,
        ema_schedule: str,
        view1: View,
        view2: View,
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = projection_head(feature_dim, hidden_dim, projection_dim, norm_last=True)
        self.predictor = projection_head(projection_dim, hidden_dim, projection_dim)
        self.target = Average(self.online(), ema, ema_schedule)
        self.temperature = temperature

    def online(self) -> nn.Sequential:
        """What the momentum encoder is a running average of."""
        return nn.Sequential(self.backbone, self.projector)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        k1, k2 = self.target(views)  # (B, projection_dim), no gradient
        q1, q2 = (self.predictor(self.projector(h)) for h in self.represent(views))
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """2 T times the cross-entropy of each query's own key, as in the paper's pseudocode."""
        keys = collectives.gathered(F.normalize(k, dim=1))  # of all ranks
        logits = F.normalize(q, dim=1) @ keys.T / self.temperature  # (B, all keys)
        own = torch.arange(len(q), device=q.device) + ranks.rank() * len(q)
        return 2 * self.temperature * F.cross_entropy(logits, own)

    def after_step(self, progress: float) -> None:
        self.target.follow(self.online(), progress)

    def networks(self) -> dict[str, nn.Module]:
        return {"online": self.backbone, "target": self.target.network[0]}  # type: ignore[dict-item, index]
