"""DINO (Caron et al. 2021, arXiv 2104.14294): two global crops, and as many local ones as `local_views` says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import View
from rela_cli.methods.base import Average, Method
from rela_cli.methods.from_lightly import DINOLoss, DINOProjectionHead, ProjectionHead


def dino_head(feature_dim: int, hidden_dim: int, projection_dim: int, prototypes: int, layers: int) -> nn.Module:
    """(B, feature_dim) -> (B, prototypes) scores of an MLP with so many layers; prototypes are unit vectors.

    lightly's head normalises them by a deprecated hook, which cannot be copied; a parametrization can.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        head = DINOProjectionHead(feature_dim, hidden_dim, projection_dim, prototypes, batch_norm=True)
        last = torch.nn.utils.remove_weight_norm(head.last_layer)
    if layers != 3:  # which is lightly's own
        widths = [feature_dim, *[hidden_dim] * (layers - 1)]
        hidden = [(i, o, nn.BatchNorm1d(o), nn.GELU()) for i, o in pairwise(widths)]
        head.layers = ProjectionHead([*hidden, (widths[-1], projection_dim, None, None)]).layers
    nn.utils.parametrizations.weight_norm(last)
    last.parametrizations.weight.original0.requires_grad_(False).fill_(1)  # the length; only directions are learned
    return head  # type: ignore[no-any-return]


class Loss(DINOLoss):  # type: ignore[misc]
    """lightly's loss, with the same numbers. It changes the centre in place, so that a CUDA graph can hold the step."""

    def forward(self, teacher: list[Tensor], student: list[Tensor], temperature: Tensor) -> Tensor:
        """From the scores (B, prototypes) of each teacher view and each student view (paper, equation 3)."""
        found = torch.stack(teacher)
        wanted = F.softmax((found - self.center) / temperature, dim=-1)
        given = F.log_softmax(torch.stack(student) / self.student_temp, dim=-1)
        pairs = -torch.einsum("tbd,sbd->ts", wanted, given)
        pairs.fill_diagonal_(0)  # a view does not learn from itself
        self.update_center(found)
        return pairs.sum() / ((pairs.numel() - pairs.diagonal().numel()) * found.shape[1])

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Move the centre towards the mean score of all ranks."""
        mean = self._center_fn(x=teacher_out, dim=(0, 1))
        self.center.copy_(self.center * self.center_momentum + mean * (1 - self.center_momentum))


class DINO(Method):
    """The student matches the centred, sharpened prototype scores of its teacher, a running average of itself.

    The teacher sees the global views only; the student sees all, and learns from each teacher view through every
    other one (paper, equation 3). The ReLA reference protocol has no local views.

    Args:
        temperature_by: "step" raises the teacher's temperature at each step; "epoch" once an epoch, evenly from
            the first to the last epoch of the warm-up, as the authors' code and ReLA's do.
        teacher_head: "copy" starts the teacher as a copy of the student, as in the paper. "own" draws a head for it, as
            in ReLA's code.
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
        temperature_by: str = "step",
        projector_layers: int = 3,
        teacher_head: str = "copy",
        epochs: int = 1,
    ) -> None:
        super().__init__(backbone, [view1, view2, *[local_view] * local_views])
        sizes = (feature_dim, hidden_dim, projection_dim, prototypes, projector_layers)
        self.head = dino_head(*sizes)
        start = nn.Sequential(backbone, dino_head(*sizes)) if teacher_head == "own" else self.student()
        self.teacher = Average(start, ema, ema_schedule)
        self.loss = Loss(prototypes, student_temp=student_temperature)
        self.temperatures = (warmup_teacher_temperature, teacher_temperature)
        self.warmup, self.by, self.epochs = temperature_warmup, temperature_by, epochs
        self.register_buffer("heat", torch.zeros(()), persistent=False)
        self.progress = 0.0

    def student(self) -> nn.Sequential:
        """What the teacher is a running average of."""
        return nn.Sequential(self.backbone, self.head)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        teacher = self.teacher(views[:2])  # (B, prototypes), no gradient
        student = [self.head(h) for h in (*self.represent(views[:2]), *self.represent(views[2:]))]
        return self.loss(teacher, student, self.heat)  # type: ignore[no-any-return]

    heat: Tensor  # the temperature, on the device, where the loss reads it

    @property
    def progress(self) -> float:  # type: ignore[override]
        """The share of the run that is done; the teacher's temperature goes by it."""
        return self._progress

    @progress.setter
    def progress(self, share: float) -> None:
        self._progress = share
        self.heat.fill_(self.temperature())

    def temperature(self) -> float:
        """The teacher's temperature now."""
        start, end = self.temperatures
        share = self.progress / self.warmup
        if self.by == "epoch":
            epoch, rising = math.floor(self.progress * self.epochs + 1e-6), round(self.warmup * self.epochs)
            share = epoch / max(1, rising - 1) if rising else 1.0
        return start + (end - start) * min(1.0, share)

    def after_step(self, progress: float) -> None:
        self.progress = progress
        self.teacher.follow(self.student(), progress)

    def networks(self) -> dict[str, nn.Module]:
        return {"online": self.backbone, "target": self.teacher.network[0]}  # type: ignore[dict-item, index]
