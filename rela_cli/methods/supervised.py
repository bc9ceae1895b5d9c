"""Plain supervised training, which ReLA (arXiv 2405.14669) accelerates as well: cross-entropy on the labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import View
from rela_cli.methods.base import Method


class Supervised(Method):
    """A linear classifier on the representation of one view; the only method here that looks at labels."""

    uses_labels = True

    def __init__(self, backbone: nn.Module, feature_dim: int, classes: int, label_smoothing: float, view: View) -> None:
        super().__init__(backbone, (view,))
        self.classifier = nn.Linear(feature_dim, classes)
        self.label_smoothing = label_smoothing

    def forward(self, views: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("supervised training needs the labels (B,) of its views")
        logits = self.classifier(self.backbone(views[0]))  # (B, classes)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
