"""SwAV (Caron et al. 2020, arXiv 2006.09882), two views of one size, without multi-crop and without a queue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import View
from rela_cli.methods.base import Method
from rela_cli.methods.from_lightly import SwaVLoss, SwaVProjectionHead


class SwAV(Method):
    """Each view predicts the prototypes that the other is assigned to (paper, equations 1 to 3).

    The assignments spread a batch evenly over the prototypes (Sinkhorn). The paper keeps a queue of old projections
    for batches smaller than the number of prototypes; here there is none, so choose `prototypes` by the batch. They are
    trained after the share `frozen_prototypes` of the run (appendix: the first epoch); a loss that stays at the
    logarithm of their number has collapsed.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: int | None,
        projection_dim: int,
        prototypes: int,
        temperature: float,
        sinkhorn_epsilon: float,
        sinkhorn_iterations: int,
        frozen_prototypes: float,
        view1: View,
        view2: View,
    ) -> None:
        super().__init__(backbone, (view1, view2))
        self.projector = SwaVProjectionHead(feature_dim, hidden_dim or feature_dim, projection_dim)
        self.prototypes = nn.Linear(projection_dim, prototypes, bias=False)
        self.loss = SwaVLoss(temperature, sinkhorn_iterations, sinkhorn_epsilon, sinkhorn_gather_distributed=True)
        self.frozen, self.progress = frozen_prototypes, 0.0
        self.has_idle = frozen_prototypes > 0
        self.normalize_prototypes()

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z = [F.normalize(self.projector(h), dim=1) for h in self.represent(views)]  # (B, projection_dim)
        weight = self.prototypes.weight.detach() if self.branch() else self.prototypes.weight
        return self.loss([F.linear(x, weight) for x in z], []).squeeze()  # type: ignore[no-any-return]

    def branch(self) -> bool:
        """Whether prototypes are frozen."""
        return self.progress < self.frozen

    def after_step(self, progress: float) -> None:
        self.progress = progress
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Prototypes are unit vectors, so that scores are cosines."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
