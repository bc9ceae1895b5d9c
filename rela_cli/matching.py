"""Phase 1: pull the representation, through a linear transfer layer, to its target (ReLA-F in the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.data.batches.tokens import CellTargets, at_cells


def transfer_layer(width: int, target_dim: int, transfer: str) -> nn.Linear:
    """T: width -> target_dim. "frozen" keeps it at its random initialisation, as the public reference code does."""
    layer = nn.Linear(width, target_dim)
    if transfer == "frozen":
        layer.requires_grad_(False)
    return layer


class Matching(nn.Module):
    """1 - cos(T f(v), y), averaged over views and samples. T: feature_dim -> target_dim."""

    def __init__(self, feature_dim: int, target_dim: int, transfer: str) -> None:
        super().__init__()
        self.transfer = transfer_layer(feature_dim, target_dim, transfer)

    def forward(self, representations: Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """V views of (B, feature_dim) and their targets -> scalar.

        targets: (B, target_dim) for all views of a sample, or V of them, one for each view.
        """
        own = [targets] * len(representations) if isinstance(targets, Tensor) else targets
        pairs = zip(representations, own, strict=True)
        losses = [1 - F.cosine_similarity(self.transfer(r), y, dim=1).mean() for r, y in pairs]
        return sum(losses[1:], start=losses[0]) / len(losses) if len(losses) > 1 else losses[0]


class TokenMatching(nn.Module):
    """The same for each cell of the learner's feature map, averaged over views and the cells that have a target."""

    def __init__(self, channels: int, target_dim: int, transfer: str) -> None:
        super().__init__()
        self.transfer = transfer_layer(channels, target_dim, transfer)

    def forward(self, maps: Sequence[Tensor], targets: Sequence[CellTargets]) -> Tensor:
        """V maps (B, channels, h, w) and the targets of their cells -> scalar."""
        losses = [self.of_view(found, target) for found, target in zip(maps, targets, strict=True)]
        return sum(losses[1:], start=losses[0]) / len(losses)

    def of_view(self, found: Tensor, target: CellTargets) -> Tensor:
        """One map (B, channels, h, w) -> scalar."""
        wanted, has_target = at_cells(target, (found.shape[2], found.shape[3]))
        mapped = self.transfer(found.float().movedim(1, -1))
        losses = (1 - F.cosine_similarity(mapped, wanted.movedim(1, -1), dim=-1)) * has_target
        return losses.sum() / has_target.sum().clamp(min=1)
