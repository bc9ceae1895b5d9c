"""The named protocols that judge frozen features, on the device that these lie on.

What is chosen by labels or by chance (a held-out tenth, an order) is chosen on the CPU and sent: the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import Probe
from rela_cli.data.batches.loader import sent
from rela_cli.evaluation.measures import retrieval, votes_and_classes
from rela_cli.numerics.logistic import SAMPLE_BLOCK, TOLERANCE, solutions
from rela_cli.numerics.randomness import permutation, stream_key, torch_seed
from rela_cli.store.files import Facts
from rela_cli.store.notices import warn_once

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # L2 on standardised weights, strongest first: each solution starts the next

SGD_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # for 256 samples a step; scaled with the batch

SGD_MOMENTUM = 0.9

FEW_SHOT_PENALTY = 1e-1  # L2 on standardised weights: a few samples cannot choose their own

TOP5_CLASSES = 10  # top-5 says nothing where there are fewer classes than twice five


@dataclass(frozen=True)
class Task:
    """A classification task on frozen features (N, D), on any device; labels (N,) are on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @property
    def device(self) -> torch.device:
        return self.train.device

    def to(self, device: torch.device) -> Task:
        """This task with its features on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def shuffled(features: Tensor, epoch: int) -> Tensor:
    """The order in which an epoch of a probe sees features (N, D), where these lie: (N,)."""
    return sent(permutation(stream_key(0, "probe", epoch), len(features)), features.device)


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, and top5 where there are classes enough, over all samples at once; (R, N, C) are R repetitions."""
    ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices.cpu() == labels[:, None]
    scores = {"top1": ranked[..., 0].double().mean().item()}
    if logits.shape[-1] > TOP5_CLASSES:
        scores["top5"] = ranked.any(-1).double().mean().item()
    if logits.ndim == 3 and len(logits) > 1:
        scores["deviation"] = ranked[..., 0].double().mean(1).std().item()
    return scores


def rela_protocol(task: Task, settings: Probe) -> tuple[Tensor, Facts]:
    """The paper's: Adam, constant rate, no decay, raw features, a fixed number of epochs."""
    with torch_seed(0, "probe"):
        linear = nn.Linear(task.train.shape[1], task.classes).to(task.device)
    optimizer = torch.optim.Adam(linear.parameters(), lr=settings.rela_lr, fused=True)
    labels, add_gradient = sent(task.train_labels, task.device), gradient_of(task)
    for epoch in range(settings.rela_epochs):
        for batch in shuffled(task.train, epoch).split(settings.rela_batch_size):
            optimizer.zero_grad(set_to_none=True)
            add_gradient(linear, task.train[batch], labels[batch])
            optimizer.step()
    with torch.no_grad():
        return linear(task.test), {}


def gradient_of(task: Task) -> Callable[[nn.Linear, Tensor, Tensor], None]:
    """What gives a linear layer the gradient of cross-entropy: on a GPU with half of autograd's launches."""
    if not task.train.is_cuda:
        return lambda linear, x, labels: F.cross_entropy(linear(x), labels).backward()  # type: ignore[no-untyped-call]
    numbers = torch.arange(task.classes, device=task.device)
    return lambda linear, x, labels: add_gradient(linear, x, labels, numbers)


@torch.no_grad()
def add_gradient(linear: nn.Linear, x: Tensor, labels: Tensor, numbers: Tensor) -> None:
    """The gradient of mean cross-entropy of (B, D) and labels (B,), written down; `numbers` are the classes' (C,)."""
    truth = (labels[:, None] == numbers).to(x.dtype)
    wrong = torch.softmax(linear(x), dim=1).sub_(truth).div_(len(x))
    linear.weight.grad, linear.bias.grad = wrong.T @ x, wrong.sum(0)


def lbfgs_protocol(task: Task, settings: Probe) -> tuple[Tensor, Facts]:
    """Multinomial logistic regression to convergence on standardised features; penalty from a held-out tenth.

    Unless `lbfgs_penalty` gives one. The chosen penalty's solution on all of train starts from the one on nine tenths.
    Rougher solutions are enough to choose by only where the held-out tenth is large: on the digits' 144 samples they
    chose another penalty.
    """
    train, test = standardised(task)
    tolerance, labels = settings.lbfgs_tolerance or TOLERANCE, sent(task.train_labels, task.device)
    penalty, start = (settings.lbfgs_penalty, None) if settings.lbfgs_penalty else best_penalty(train, task, tolerance)
    (weights,) = solutions(train, labels, task.classes, (penalty,), start, tolerance)
    return affine(test, weights), {"penalty": penalty}


def best_penalty(train: Tensor, task: Task, tolerance: float) -> tuple[float, Tensor]:
    """The penalty with the best held-out tenth, the strongest of equals, and its solution on the other nine."""
    (rest, labels), (held_out, truth) = both_parts(task)
    path, found = solutions(train[rest], labels, task.classes, PENALTIES, tolerance=tolerance), {}
    for penalty, weights in zip(PENALTIES, path, strict=True):
        guess = affine(train[held_out], weights).argmax(1)
        found[(guess == truth).double().mean().item(), penalty] = weights
    best = max(found)
    return best[1], found[best]


def standardised(task: Task) -> tuple[Tensor, Tensor]:
    """Train and test features with train's mean 0 and deviation 1, float32; what does not vary is 0.

    Sums are float64 over blocks in float32, around the first sample, so a constant leaves exactly nothing.
    """
    first, n = task.train[0].float(), len(task.train)
    total = task.train.new_zeros(task.train.shape[1], dtype=torch.float64)
    squares = total.clone()
    for block in task.train.split(SAMPLE_BLOCK):
        moved = block - first
        total += moved.sum(0)
        squares += moved.square_().sum(0)
    deviation = ((squares - total.square() / n).clamp(min=0) / max(1, n - 1)).sqrt()
    scale = torch.where(deviation > 1e-8 * deviation.max().clamp(min=1e-30), 1 / deviation, 0.0).float()
    mean = (total / n).float()
    train, test = (standard(features, first, mean, scale) for features in (task.train, task.test))
    return train, test


def standard(features: Tensor, first: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(features - first - mean) * scale, a block at a time."""
    result = torch.empty(features.shape, device=features.device)
    for block, place in zip(features.split(SAMPLE_BLOCK), result.split(SAMPLE_BLOCK), strict=True):
        torch.sub(block, first, out=place).sub_(mean).mul_(scale)
    return result


def stratified_tenth(labels: Tensor) -> Tensor:
    """Every tenth sample of each class, in a fixed random order: (N,) bool."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = permutation(stream_key(0, "held out"), len(labels))
    for label in labels.unique():
        chosen[order[labels[order] == label][::10]] = True
    return chosen


def nine_tenths(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to fit by and to judge by, in order: nine tenths and a tenth of each class.

    With one sample a class nothing can be held out; then both are all samples, which is said.
    """
    held_out = stratified_tenth(labels)
    rest = held_out if bool(held_out.all()) else ~held_out
    if rest is held_out:
        warn_once("one labelled image a class, so none can be held out: probes choose by the images they are fitted to")
    return rest.nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def both_parts(task: Task) -> list[tuple[Tensor, Tensor]]:
    """Rows and their labels of nine tenths of train, and of the tenth; where the features lie."""
    parts = nine_tenths(task.train_labels)
    return [(sent(rows, task.device), sent(task.train_labels[rows], task.device)) for rows in parts]


def affine(features: Tensor, weights: Tensor) -> Tensor:
    """(N, D) and (D + 1, C), the last row being the bias -> (N, C), in the weights' precision."""
    return torch.cat([block.to(weights.dtype) @ weights[:-1] + weights[-1] for block in features.split(SAMPLE_BLOCK)])


def sgd_grid_protocol(task: Task, settings: Probe) -> tuple[Tensor, Facts]:
    """SGD, momentum 0.9, cosine, no decay, raw features; the rate from a grid, by a held-out tenth of train.

    All rates are trained at once (SimCLR, appendix B.6, and DINO choose among rates; one after the other there).
    """
    (rest, labels), (held_out, truth) = both_parts(task)
    weights = sgd_probe(task.train[rest], labels, task.classes, SGD_RATES, settings)
    guesses = torch.stack([affine(task.train[held_out], w).argmax(1) for w in weights])  # (rates, held out)
    scores = (guesses == truth).double().mean(1)
    best = SGD_RATES[int(scores.argmax())]
    (weight,) = sgd_probe(task.train, sent(task.train_labels, task.device), task.classes, (best,), settings)
    return affine(task.test, weight), {"rate": best}


def sgd_probe(features: Tensor, labels: Tensor, classes: int, rates: tuple[float, ...], settings: Probe) -> Tensor:
    """A linear classifier for each rate, on the same batches: (rates, D + 1, C), the last row being the bias."""
    x = torch.cat((features, features.new_ones(len(features), 1)), dim=1)
    size, epochs = settings.sgd_grid_batch_size, settings.sgd_grid_epochs
    weights = x.new_zeros(len(rates), x.shape[1], classes)
    memory = torch.zeros_like(weights)
    rate = torch.tensor(rates, dtype=x.dtype).view(-1, 1, 1).to(x.device) * size / 256
    steps, numbers = epochs * -(-len(x) // size), torch.arange(classes, device=x.device)
    step = 0
    for epoch in range(epochs):
        for batch in shuffled(x, epoch).split(size):
            truth = (labels[batch][:, None] == numbers).to(x.dtype)  # one_hot asks the host for the largest label
            slope = x[batch].T @ (torch.softmax(x[batch] @ weights, dim=-1) - truth) / len(batch)
            memory = SGD_MOMENTUM * memory + slope
            weights = weights - rate * 0.5 * (1 + math.cos(math.pi * step / steps)) * memory
            step += 1
    return weights


def few_shot_protocol(task: Task, settings: Probe) -> tuple[Tensor, Facts]:
    """Logistic regression on a few labelled samples a class, standardised by all of train; mean over draws."""
    train, test = standardised(task)
    logits = []
    for draw in range(settings.few_shot_draws):
        chosen = some_of_each(task.train_labels, settings.few_shot_k, draw)
        rows, labels = (sent(part, task.device) for part in (chosen, task.train_labels[chosen]))
        (weights,) = solutions(train[rows], labels, task.classes, (FEW_SHOT_PENALTY,))
        logits.append(affine(test, weights))
    return torch.stack(logits), {}


def some_of_each(labels: Tensor, k: int, draw: int) -> Tensor:
    """Indices of k samples of each class, or of all where there are fewer; another set for another `draw`."""
    order = permutation(stream_key(0, "few shot", draw), len(labels))
    return torch.cat([order[labels[order] == label][:k] for label in labels.unique()])


def knn_protocol(task: Task, settings: Probe) -> tuple[Tensor, Facts]:
    """k nearest neighbours by cosine, votes weighted exp(cos / T); and how well they retrieve a query's own class."""
    k, temperature = settings.knn_k, settings.knn_temperature
    labels = sent(task.train_labels, task.device)
    votes, found = votes_and_classes(task.train, labels, task.test, k, temperature, task.classes)
    total = class_sizes(task.train_labels, int(task.test_labels.max()) + 1)[task.test_labels]
    return votes, retrieval(found.cpu(), task.test_labels, total)


def class_sizes(labels: Tensor, count: int) -> Tensor:
    """Samples of each of `count` classes, or of more."""
    return torch.bincount(labels, minlength=count)


FITTERS: dict[str, Callable[[Task, Probe], tuple[Tensor, Facts]]] = {
    "rela": rela_protocol,
    "lbfgs": lbfgs_protocol,
    "knn": knn_protocol,
    "sgd_grid": sgd_grid_protocol,
    "few_shot": few_shot_protocol,
}
