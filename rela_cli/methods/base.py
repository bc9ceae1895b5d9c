"""The contract of a method, and the running average that half of them need.

A method is a module that owns the backbone, its heads and its loss: `forward(views)` is the loss, `after_step`
moves its target network. The loop knows nothing else of it. What a method remembers from step to step stands in
parameters, buffers and `progress`: these a checkpoint keeps. Shapes: V views of (B, 3, H, W); H and W may differ
between views (`View.size_scale`). A method that says `uses_labels` is called as `forward(views, labels)`, and asks
for the number of classes by a keyword `classes`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from rela_cli.config.schema import View
from rela_cli.distributed.batch_norm import views_apart


class Method(nn.Module):
    """A backbone with what a method puts around it."""

    backbone: nn.Module
    views: tuple[View, ...]  # how its views are drawn, one a view
    uses_labels: bool = False  # whether forward wants the samples' labels (B,) too
    progress: float = 0.0  # the share of the run that is done, for methods that note it in `after_step`
    has_idle: bool = False  # whether some trainable parameter gets no gradient at times
    one_pass: bool = False  # whether views go through a network together; batch norms must be batch_norm.py's then

    def __init__(self, backbone: nn.Module | None = None, views: Sequence[View] = ()) -> None:
        """A method from elsewhere may also set `backbone` and `views` itself."""
        super().__init__()
        if backbone is not None:
            self.backbone, self.views = backbone, tuple(views)

    def represent(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's representation (B, D) of each view."""
        return each(self.backbone, views, self.one_pass)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The scalar loss of some views of one batch."""
        raise NotImplementedError

    def branch(self) -> Hashable:
        """What `forward` goes by on the host: a step that was recorded as a CUDA graph holds for one branch."""
        return ()

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step, in both phases; `progress` is the share of the run that is done."""

    def networks(self) -> dict[str, nn.Module]:
        """The backbones that can be probed and kept: "online", and "target" where there is one."""
        return {"online": self.backbone}


def each(network: nn.Module, views: Sequence[Tensor], one_pass: bool) -> list[Tensor]:
    """A network's output for each view, in one pass over views of one size, with batch statistics of their own."""
    if not one_pass or len({view.shape for view in views}) != 1:
        return [network(view) for view in views]
    with views_apart(len(views)):
        return list(network(torch.cat(tuple(views))).chunk(len(views)))


class Average(nn.Module):
    """A slowly moving copy of some modules: theta' <- m theta' + (1 - m) theta, without gradient.

    Running statistics of batch norms move along, so that the copy is fit for evaluation even after a phase in
    which it was never run. schedule "cosine" raises m from its start to 1 (BYOL, section 3.2).
    """

    def __init__(self, online: nn.Module, momentum: float, schedule: str) -> None:
        super().__init__()
        self.network = copy.deepcopy(online).requires_grad_(False)
        self.start, self.schedule = momentum, schedule
        self.one_pass = False

    def momentum(self, progress: float) -> float:
        """m at a share of the run."""
        if self.schedule == "constant":
            return self.start
        return 1 - (1 - self.start) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def follow(self, online: nn.Module, progress: float) -> None:
        """One step towards `online`."""
        torch._foreach_lerp_(floats(self.network), floats(online), 1 - self.momentum(progress))

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The copy's output for each view, without gradient."""
        return each(self.network, views, self.one_pass)


def floats(module: nn.Module) -> list[Tensor]:
    """Parameters and floating-point buffers."""
    return [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
