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

    def forward(self, representations: Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """V views of (B, feature_dim) and their targets -> scalar.

        targets: (B, target_dim) for all views of a sample, or V of them, one for each view.
        """
        own = [targets] * len(representations) if isinstance(targets, Tensor) else targets
        pairs = zip(representations, own, strict=True)
        losses = [1 - F.cosine_similarity(self.transfer(r), y, dim=1).mean() for r, y in pairs]
        return sum(losses[1:], start=losses[0]) / len(losses) if len(losses) > 1 else losses[0]
