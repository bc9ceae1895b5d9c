"""Multinomial logistic regression with an L2 penalty, to its optimum: L-BFGS that knows about the curvature.

The objective is mean cross-entropy + penalty / 2 * |weights|^2, the bias free. Weights are (D + 1, C), the last row
being the bias. Features are read in blocks, in float32, and sums over blocks are float64.

All of it happens where the features are. On a GPU the host reads three numbers for each evaluation of the objective,
and nothing for a block of samples; factors of all classes are found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rela_cli.numerics.gram import add_gram, mirrored
from rela_cli.numerics.side_by_side import WORKERS, map_blocks

TOLERANCE = 1e-6  # largest entry of the gradient at what counts as an optimum
MOST_STEPS = 300  # at most, for one penalty
REMEMBERED_PAIRS = 20  # pairs of (step, change of gradient) that L-BFGS remembers
SAMPLE_BLOCK = 2048  # samples: they stay in the processor's cache between their two products
GPU_BLOCK = 16384  # samples of a product on a GPU: launches are few, and sums in float32 short
THREAD_SHARE = (
    4 * SAMPLE_BLOCK
)  # samples that a thread has at a time: products this small gain little by two threads, and wait a lot
CURVED = 0.03  # share of the samples, those that a class is least sure of, whose curvature is counted one by one
REFRESH = (0, 5, 30, 100)  # steps before which the curvature is looked at anew
LIFTS = range(-7, 1)  # powers of ten of the mean diagonal, that a matrix is lifted by until it has an inverse
MANY = 2**28  # entries of curvature (1 GB): where a matrix for each class would be more, all share one

R = TypeVar("R")
Function = Callable[[Tensor], tuple[float, Tensor]]  # weights -> loss, gradient
Product = Callable[[Tensor], Tensor]  # gradient -> about the inverse Hessian times it


class Samples:
    """Features (N, D) and labels (N,) as the solver reads them, in float32; the bias is a feature that is always 1."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        self.rows, self.labels, n = features.float(), labels, len(features)
        self.block = GPU_BLOCK if features.is_cuda else SAMPLE_BLOCK
        gram, mean = self.rows.new_zeros(features.shape[1], features.shape[1]), self.rows.mean(0, keepdim=True)
        add_gram(gram, self.rows)
        self.covariance = torch.cat((torch.cat((mirrored(gram) / n, mean)), with_one(mean).T), dim=1)
        size = len(self.covariance)
        self.is_shared = classes * size**2 > MANY or n < size  # one curvature for all classes

    def loss(self, weights: Tensor, penalty: float, dtype: torch.dtype) -> tuple[float, Tensor]:
        """The objective and its gradient (D + 1, C) in float64; `dtype` is that of the products."""
        bias, w = weights[-1:].T.to(dtype), weights[:-1].T.to(dtype).contiguous()
        loss, slope = weights.new_zeros(()), torch.zeros_like(weights.T)
        for loss_of_share, slope_of_share in self.shared_out(lambda x, y: summed_loss(x, y, bias, w, self.block)):
            loss += loss_of_share
            slope += slope_of_share
        decay = penalty * weights
        decay[-1].zero_()
        loss = loss / len(self.rows) + 0.5 * (decay * weights).sum()
        return float(loss), slope.T / len(self.rows) + decay

    def shared_out(self, work: Callable[[Tensor, Tensor], R]) -> Iterable[R]:
        """`work` on shares of the samples, each by a thread; on a GPU all at once."""
        if self.rows.is_cuda:
            return [work(self.rows, self.labels)]
        shares = zip(self.rows.split(THREAD_SHARE), self.labels.split(THREAD_SHARE), strict=True)
        return map_blocks(lambda share: work(*share), shares)

    def doubt(self, weights: Tensor) -> Tensor:
        """p (1 - p) of each class, or their mean where classes share: (C or 1, N) float32."""
        bias, w, parts = weights[-1:].T.float(), weights[:-1].T.float().contiguous(), []
        for rows in self.rows.split(self.block):
            chances = log_softmax(bias, w, rows).exp_()
            part = chances * (1 - chances)
            parts.append(part.mean(0, keepdim=True) if self.is_shared else part)
        return torch.cat(parts, dim=1)


def summed_loss(features: Tensor, labels: Tensor, bias: Tensor, w: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of some samples () and its gradient (C, D + 1), summed in float64."""
    loss = w.new_zeros((), dtype=torch.float64)
    slope = w.new_zeros(len(w), features.shape[1] + 1, dtype=torch.float64)
    for rows, label in zip(features.split(block), labels.split(block), strict=True):
        x, truth = rows.to(w.dtype), label[None]
        logs = log_softmax(bias, w, x)
        loss -= logs.gather(0, truth).sum(dtype=torch.float64)
        wrong = logs.exp_().scatter_add_(0, truth, logs.new_full((1, len(label)), -1.0))
        slope[:, :-1] += wrong @ x
        slope[:, -1] += wrong.sum(1)
    return loss, slope


def log_softmax(bias: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """(C, 1), (C, D), (n, D) -> (C, n): as (n, C) the products before and after would take several times longer."""
    return torch.log_softmax(torch.addmm(bias, w, x.T), dim=0)


def with_one(rows: Tensor) -> Tensor:
    """(n, D) -> (n, D + 1)"""
    return torch.cat((rows, rows.new_ones(len(rows), 1)), dim=1)


def solutions(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> list[Tensor]:
    """The optimum for each penalty, each found from the one before, the first from `start` or from zero.

    Features (N, D) should be standardised; the strongest penalty first is fastest. Gives (D + 1, C) float64 each.
    """
    samples, found = Samples(features, labels, classes), []
    weights = start
    if weights is None:
        weights = features.new_zeros(features.shape[1] + 1, classes, dtype=torch.float64)
    for penalty in penalties:
        weights = optimum(samples, penalty, weights, tolerance)
        found.append(weights)
    return found


def optimum(samples: Samples, penalty: float, weights: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """From `weights` downhill with products in float32, and on in float64 if rounding ends that early."""
    for dtype in (torch.float32, torch.float64):
        weights, slope = descend(
            lambda w, dtype=dtype: samples.loss(w, penalty, dtype),  # type: ignore[misc]
            lambda w: inverse_curvature(samples, w, penalty),
            weights,
            tolerance,
        )
        if slope <= tolerance:
            break
    return weights


def descend(
    function: Function, curvature_at: Callable[[Tensor], Product], weights: Tensor, tolerance: float
) -> tuple[Tensor, float]:
    """L-BFGS until the gradient is small, or rounding hides the way down: the point and the largest slope there."""
    loss, slope = function(weights)
    pairs: list[tuple[Tensor, Tensor]] = []
    for number in range(MOST_STEPS):
        if slope.abs().max() <= tolerance:
            break
        if number in REFRESH:
            curvature = curvature_at(weights)
        moved = line_search(function, weights, loss, slope, -direction(slope, pairs, curvature))
        if moved is None:
            break
        step, loss, changed = moved
        pairs = [*pairs[1 - REMEMBERED_PAIRS :], (step, changed - slope)]
        weights, slope = weights + step, changed
    return weights, float(slope.abs().max())


def direction(slope: Tensor, pairs: list[tuple[Tensor, Tensor]], curvature: Product) -> Tensor:
    """The inverse Hessian times the slope, by two loops over the pairs (Nocedal and Wright, algorithm 7.4)."""
    shares = []
    for step, change in reversed(pairs):
        shares.append((step * slope).sum() / (step * change).sum())
        slope = slope - shares[-1] * change
    slope = curvature(slope)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        slope = slope + (share - (change * slope).sum() / (step * change).sum()) * step
    return slope


def line_search(
    function: Function, weights: Tensor, loss: float, slope: Tensor, towards: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """A step along `towards` to where it is flatter and no higher: the step, the loss and the gradient there.

    None where rounding hides the way down. The loss is trusted to 1e-7 of itself, as float32 gives it.
    """
    first = float((towards * slope).sum())
    low, high, size = 0.0, float("inf"), 1.0
    for _ in range(20):
        there, changed = function(weights + size * towards)
        last = float((towards * changed).sum())
        if last > -0.9 * first or there > loss + 1e-4 * size * first + 1e-7 * abs(loss):
            high = size
        elif last < 0.9 * first:
            low = size
        else:
            return size * towards, there, changed
        size = 2 * size if high == float("inf") else (low + high) / 2
    return None


# ----------------------------------------------------------------------------------------------------------- curvature


def inverse_curvature(samples: Samples, weights: Tensor, penalty: float) -> Product:
    """The Hessian's block of each class, X' diag(p (1 - p)) X / N + penalty, inverted."""
    doubt = samples.doubt(weights)
    if not weights.any():
        doubt = doubt[:1]  # at zero all classes are in the same doubt
    ridge = samples.covariance.new_full((len(samples.covariance),), penalty)
    ridge[-1].zero_()
    own = lambda part: block(samples, part) + ridge.diag()  # noqa: E731
    if doubt.is_cuda:
        inverses = inverse_of_all(torch.stack([own(part) for part in doubt]))
    else:
        lanes = min(WORKERS, len(doubt))
        inverses = torch.stack(list(map_blocks(lambda part: inverse(own(part)), doubt, lanes)))
    return lambda slope: (inverses @ slope.T.float().unsqueeze(-1)).squeeze(-1).T.double()


def block(samples: Samples, doubt: Tensor) -> Tensor:
    """About X' diag(doubt) X / N, (D + 1, D + 1): most samples are certain, and count as so many mean samples."""
    counted = min(len(doubt), max(SAMPLE_BLOCK, int(CURVED * len(doubt))))
    most = doubt.topk(counted, sorted=False)
    rows = with_one(samples.rows[most.indices]) * most.values.sqrt()[:, None]
    rest = (doubt.sum() - most.values.sum()).clamp(min=0) / len(doubt)
    return torch.addmm(samples.covariance * rest, rows.T, rows, alpha=1 / len(doubt))


def inverse(matrix: Tensor) -> Tensor:
    """The Cholesky factor of a symmetric positive matrix, its diagonal lifted as far as rounding makes it necessary."""
    identity, mean = torch.eye(len(matrix)), float(matrix.diagonal().mean())
    for power in LIFTS:
        factor, failed = torch.linalg.cholesky_ex(matrix + 10.0**power * mean * identity)
        if not failed:
            return torch.cholesky_inverse(factor)
    return identity


def inverse_of_all(matrices: Tensor) -> Tensor:
    """The Cholesky factors of (C, n, n) at once, all lifted as far as the worst needs; the host reads once a try."""
    identity = torch.eye(matrices.shape[-1], device=matrices.device)
    mean = matrices.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    for power in LIFTS:
        factors, failed = torch.linalg.cholesky_ex(matrices + 10.0**power * mean * identity)
        if not failed.any():
            return torch.cholesky_inverse(factors)
    return identity.expand_as(matrices)
