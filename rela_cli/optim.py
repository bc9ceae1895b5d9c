"""Optimizers and learning-rate schedules; a schedule is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, fused: one kernel for all parameters, which can also hold an update back on the device."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def lr_at(step: int, total_steps: int, lr: float, schedule: str, warmup_steps: int) -> float:
    """The learning rate of a step, counted from 1: linear warm-up, then constant or cosine down to zero."""
    if step <= warmup_steps:
        return lr * step / (warmup_steps + 1)
    if schedule == "constant":
        return lr
    progress = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


def non_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """1.0 when any gradient holds NaN or Inf, else 0.0; a scalar on the device, nothing waits for it."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return (~torch.stack(norms).sum().isfinite()).float()
