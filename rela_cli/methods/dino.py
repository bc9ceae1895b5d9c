"""DINO (Caron et al. 2021, arXiv 2104.14294): two global crops, and as many local ones as `local_views` says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.methods.base import Average, Method
from rela_cli.methods.from_lightly import DINOLoss, DINOProjectionHead


def projection_head(feature_dim: int, hidden_dim: int, projection_dim: int, prototypes: int) -> nn.Module:
    """(B, feature_dim) -> (B, prototypes) scores; prototypes are unit vectors.

    lightly's head normalises them by a deprecated hook that cannot be copied; the same as a parametrization can.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        head = DINOProjectionHead(feature_dim, hidden_dim, projection_dim, prototypes, batch_norm=True)
        last = torch.nn.utils.remove_weight_norm(head.last_layer)
    nn.utils.parametrizations.weight_norm(last)
    last.parametrizations.weight.original0.requires_grad_(False).fill_(1)  # the length; only directions are learned
    return head  # type: ignore[no-any-return]


class DINO(Method):
    """The student matches the centred, sharpened prototype scores of its teacher, a running average of itself.

    The teacher sees the global views only; the student sees all, and learns from each teacher view through every
    other one (paper, equation 3). The ReLA reference protocol has no local views.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: int,
        projection_dim: int,
        prototypes: int,
        student_temperature: float,
        warmup_teacher_temperature: float,
        teacher_temperature: float,
        temperature_warmup: float,
        ema: float,
        ema_schedule: str,
        view1: View,
        view2: View,
        local_views: int,
        local_view: View,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = projection_head(feature_dim, hidden_dim, projection_dim, prototypes)
        self.teacher = Average(self.student(), ema, ema_schedule)
        self.loss = DINOLoss(prototypes, student_temp=student_temperature)
        self.temperatures = (warmup_teacher_temperature, teacher_temperature)
        self.warmup = temperature_warmup
        self.progress = 0.0
        self.views = (view1, view2, *[local_view] * local_views)

    def student(self) -> nn.Sequential:
        """What the teacher is a running average of."""
        return nn.Sequential(self.backbone, self.head)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        teacher = self.teacher(views[:2])  # (B, prototypes), no gradient
        student = [self.head(h) for h in (*self.represent(views[:2]), *self.represent(views[2:]))]
        start, end = self.temperatures
        temperature = start + (end - start) * min(1.0, self.progress / self.warmup)
        return self.loss(teacher, student, teacher_temp=temperature)  # type: ignore[no-any-return]

    def after_step(self, progress: float) -> None:
        self.progress = progress
        self.teacher.follow(self.student(), progress)

    def networks(self) -> dict[str, nn.Module]:
        return {"online": self.backbone, "target": self.teacher.network[0]}  # type: ignore[dict-item, index]
