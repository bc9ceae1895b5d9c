"""Phase 1: pull the representation, through a linear transfer layer, to its target (ReLA-F in the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Matching(nn.Module):
    """1 - cos(T f(v), y), averaged over views and samples. T: feature_dim -> target_dim.

    `transfer` "frozen" keeps T at its random initialisation, which is what the public reference code does.
    """

    def __init__(self, feature_dim: int, target_dim: int, transfer: str) -> None:
        super().__init__()
        self.transfer = nn.Linear(feature_dim, target_dim)
        if transfer == "frozen":
            self.transfer.requires_grad_(False)

    def forward(self, representations: Sequence[Tensor], targets: Tensor) -> Tensor:
        """V views of (B, feature_dim) and targets (B, target_dim) -> scalar."""
        losses = [1 - F.cosine_similarity(self.transfer(r), targets, dim=1).mean() for r in representations]
        return sum(losses[1:], start=losses[0]) / len(losses)
