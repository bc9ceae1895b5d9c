"""Batch norm whose batch is that of all ranks, and of one view alone when several views go through in one pass.

Statistics are those that one process with the whole batch would have, so the number of ranks changes no result but by
rounding. torch's SyncBatchNorm does this for GPUs only, and knows no views. Where `runtime.norm` says so, a batch falls
into G groups of equally many images that follow each other, each with statistics of its own (ghost batch norm, Hoffer
et al. 2017), whatever the number of ranks: G ranks exchange nothing for it. Shapes: B images a rank, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rela_cli.distributed import collectives, ranks
from rela_cli.errors import ConfigError

_views = 1  # how many views the batch of the present pass holds, one behind the other
_counters = Counter[Tensor]()  # of the batch norms that the present pass has gone through, and how often


@contextmanager
def views_apart(count: int) -> Iterator[None]:
    """Inside, a batch is `count` views of the same images, and each keeps statistics of its own."""
    global _views
    _views = count
    try:
        yield
        if _counters:
            torch._foreach_add_(list(_counters), list(_counters.values()))  # one kernel for all of them
    finally:
        _views = 1
        _counters.clear()


def over_all_ranks(norm: Any, x: Tensor) -> Tensor:
    """A batch norm in training mode over all ranks, each view and group apart: (V B, C, ...) -> the same.

    Running statistics move by the means over the groups that this rank has a part of.
    """
    own = max(1, norm.groups // ranks.world())  # groups that this rank's images fall into
    sharing = Sharing(max(1, ranks.world() // norm.groups), norm.groups)
    mean, variance = statistics(x, _views * own, sharing)  # (V own, C)
    count = sharing.ranks * (x.numel() // x.shape[1] // len(mean))
    of_views = (s.unflatten(0, (_views, own)).mean(1) for s in (mean, variance))
    for view_mean, view_variance in zip(*of_views, strict=True):
        move_running_statistics(norm, view_mean, view_variance, count)
    return Normalise.apply(x, mean, variance, norm.weight, norm.bias, norm.eps, sharing)  # type: ignore[no-any-return, no-untyped-call]


class Sharing(NamedTuple):
    """How many ranks a group has, and how many groups there are."""

    ranks: int
    groups: int

    def communicator(self) -> Any:
        """What the ranks of this rank's group talk by."""
        return ranks.communicator(self.groups)


@torch.no_grad()
def statistics(x: Tensor, parts: int, sharing: Sharing) -> tuple[Tensor, Tensor]:
    """Mean and variance (P, C) of each of P parts over the ranks of a group: one collective, or none for one rank."""
    own = torch.stack([torch.stack(torch.batch_norm_update_stats(v, None, None, 0.0)) for v in exact(x).chunk(parts)])
    if sharing.ranks == 1:
        return own[:, 0], own[:, 1]
    every = collectives.gathered(own[None], sharing.communicator())  # (ranks, P, 2, C)
    mean = every[:, :, 0].mean(0)
    return mean, (every[:, :, 1] + (every[:, :, 0] - mean).square()).mean(0)


def exact(x: Tensor) -> Tensor:
    """In 32 bits where it has 16: what is summed or added up afterwards is rounded once, at the end."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Normalise(torch.autograd.Function):
    """w (x - mean) / sqrt(variance + eps) + b of V views (V B, C, ...), by torch's own kernels.

    Mean and variance (V, C) are those of all ranks' x, and the gradient knows that: with dy what a rank's loss wants of
    its output, r = 1 / sqrt(variance + eps), x^ = (x - mean) r, and means over all ranks that share them,
    dx = w r (dy - mean(dy) - x^ mean(dy x^)), as Ioffe and Szegedy (2015) have it. One collective for all views.
    """

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        sharing: Sharing,
    ) -> Tensor:
        context.save_for_backward(x, mean, variance, weight)
        context.eps, context.sharing = eps, sharing
        return torch.cat(
            [
                F.batch_norm(view, m, v, weight, bias, eps=eps)
                for view, m, v in zip(x.chunk(len(mean)), mean, variance, strict=True)
            ]
        )

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight = context.saved_tensors
        scale = torch.ones_like(mean[0]) if weight is None else weight
        views = list(zip(exact(x).chunk(len(mean)), mean, variance, strict=True))
        wanted = [True, True, True]
        parts = [
            torch.ops.aten.native_batch_norm_backward(dy, view, scale, m, v, None, None, False, context.eps, wanted)
            for dy, (view, m, v) in zip(exact(gradient).chunk(len(mean)), views, strict=True)
        ]  # as if mean and variance were constants: w r dy, and this rank's sums of dy x^ and dy
        sums = torch.stack([torch.stack(part[1:]) for part in parts])  # (V, 2, C)
        shared = sums if context.sharing.ranks == 1 else ranks.mean_over(sums, context.sharing.communicator())
        means = shared * (mean.shape[0] * x.shape[1] / x.numel())
        slope = -scale * (variance + context.eps).rsqrt()  # (V, C)
        dx = [
            part[0].add_(F.batch_norm(view, m, v, s * of_view[0], s * of_view[1], eps=context.eps))
            for part, (view, m, v), s, of_view in zip(parts, views, slope, means, strict=True)
        ]
        dw, db = sums.sum(0)
        return (
            torch.cat(dx).to(x.dtype),
            None,
            None,
            None if weight is None else dw,
            None if weight is None else db,
            None,
            None,
        )


@torch.no_grad()
def move_running_statistics(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics; the variance is the unbiased one of `count` values a channel, as torch's is."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), momentum)


def normalised(norm: Any, x: Tensor) -> Tensor:
    """(V B, C, ...) -> the same: by running statistics in eval mode, else each view by its own."""
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    if ranks.world() > 1 or norm.groups > 1:
        return over_all_ranks(norm, x)
    if _views > 1 and x.dtype in (torch.bfloat16, torch.float16) and norm.momentum is not None:
        if norm.running_mean is not None:
            _counters[norm.num_batches_tracked] += _views
        return ViewsApart.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps)  # type: ignore[no-any-return, no-untyped-call]
    return torch.cat([of_one_view(norm, view) for view in x.chunk(_views)])


def of_one_view(norm: Any, x: Tensor) -> Tensor:
    """torch's batch norm of one view, in its own fast kernel."""
    momentum = norm.momentum
    if norm.running_mean is not None:
        if momentum is None or _views == 1:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
        else:
            _counters[norm.num_batches_tracked] += 1
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, momentum or 0.0, norm.eps)


class ViewsApart(torch.autograd.Function):
    """Batch norm of V views (V B, C, ...) of 16 bits, each by its own statistics, in one process: no copy behind it.

    The kernels are those that torch takes for 16 bits on a GPU; for 32 bits it may take cuDNN's, which write no slice.
    """

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        result, saved = torch.empty_like(x), []
        for view, place in zip(x.chunk(_views), result.chunk(_views), strict=True):
            mean, inverse = (torch.empty(x.shape[1], device=x.device) for _ in range(2))
            torch.ops.aten.native_batch_norm.out(
                *(view, weight, bias, running_mean, running_var, True, momentum, eps),
                out=place,
                save_mean=mean,
                save_invstd=inverse,
            )
            saved += [mean, inverse]
        context.save_for_backward(x, weight, *saved)
        context.eps = eps
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = context.saved_tensors
        views, is_affine = len(saved) // 2, weight is not None
        parts = [
            torch.ops.aten.native_batch_norm_backward(
                dy, view, weight, None, None, mean, inverse, True, context.eps, [True, is_affine, is_affine]
            )
            for dy, view, mean, inverse in zip(
                gradient.chunk(views), x.chunk(views), saved[::2], saved[1::2], strict=True
            )
        ]
        of_affine = [list(part[1:]) for part in parts]
        for of_view in of_affine[1:] if is_affine else ():
            torch._foreach_add_(of_affine[0], of_view)
        dw, db = of_affine[0]
        return torch.cat([part[0] for part in parts]), dw, db, None, None, None, None


@torch.no_grad()
def share_running_statistics(network: nn.Module) -> None:
    """Let ranks of several groups have the means of their running statistics: one collective, none for one group."""
    if ranks.world() == 1:
        return
    norms = [m for m in network.modules() if getattr(m, "groups", 1) > 1 and type(m) in OUR_CLASSES.values()]
    moved = [s for m in norms for s in (m.running_mean, m.running_var) if isinstance(s, Tensor)]
    if moved:
        means = ranks.mean_over(torch.cat(moved))
        torch._foreach_copy_(moved, list(means.split([len(s) for s in moved])))


class BatchNorm1d(nn.BatchNorm1d):
    """torch's, over all ranks and views apart."""

    groups: int = 1

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return normalised(self, x)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, over all ranks and views apart."""

    groups: int = 1

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return normalised(self, x)


def with_activation(kind: type) -> type:
    """Our batch norm for timm's kinds, which also drop and activate."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.act(self.drop(normalised(self, x)))  # type: ignore[no-any-return]

    return type(kind.__name__, (kind,), {"forward": forward, "groups": 1})


OUR_CLASSES: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}


def convert(network: nn.Module, groups: int = 1) -> nn.Module:
    """Let every batch norm of a network be ours, of so many groups; weights, buffers and names stay as they are.

    Raises:
        ConfigError: one is of a kind whose forward pass is not known here.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in OUR_CLASSES.values():
                module.__class__ = our_class(type(module))
            module.groups = groups  # type: ignore[assignment]
    return network


def our_class(kind: type) -> type:
    """Our class for a batch norm of `kind`."""
    if kind not in OUR_CLASSES:
        if kind.__name__ != "BatchNormAct2d":
            raise ConfigError(
                f"{kind.__module__}.{kind.__name__} is a batch norm that rela cannot compute over several ranks; "
                f"train this learner with runtime.devices=1 runtime.norm=global"
            )
        OUR_CLASSES[kind] = with_activation(kind)
    return OUR_CLASSES[kind]


def is_known(network: nn.Module) -> bool:
    """Whether every batch norm of a network can be made ours."""
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return all(
        kind in OUR_CLASSES or kind in OUR_CLASSES.values() or kind.__name__ == "BatchNormAct2d" for kind in kinds
    )
