"""Dense prediction on frozen feature maps: heads, their training, and intersection over union.

Masks lie beside the maps: where these are on a GPU, a step waits for nothing.
Shapes: B images, D channels of a map of h x w, C classes, S pixels a side of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.data.batches.loader import sent
from rela_cli.numerics.randomness import permutation, stream_key
from rela_cli.optim import Schedule
from rela_cli.store.files import Facts

IGNORED = 255  # in masks: pixels that count nowhere
LINEAR, FCN = "linear", "fcn"
HEADS = (LINEAR, FCN)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of Adam, that a held-out tenth of the train images chooses among
WARMUP = 0.1  # share of the steps
NARROWER, DROPOUT = 4, 0.1  # of the FCN head, as torchvision's

Maps = Callable[[Tensor], Tensor]  # rows (B,) -> (B, D, h, w) float32


def head(name: str, width: int, classes: int) -> nn.Module:
    """(B, D, h, w) -> (B, C, h, w).

    `linear`: a batch norm and a 1x1 convolution, as DINOv2's linear head. `fcn`: a 3x3 convolution to D / 4 channels,
    batch norm, ReLU, dropout, and a 1x1 convolution (Long et al. 2015, as torchvision's FCNHead has it).
    """
    if name == LINEAR:
        return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))
    inner = max(1, width // NARROWER)
    first = nn.Conv2d(width, inner, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(inner), nn.ReLU(), nn.Dropout(DROPOUT), nn.Conv2d(inner, classes, 1))


def logits(network: nn.Module, maps: Tensor, size: int) -> Tensor:
    """(B, C, S, S): what a head makes of maps, brought to the size of the masks bilinearly."""
    return F.interpolate(network(maps), (size, size), mode="bilinear", align_corners=False)


def fit(
    heads: Sequence[nn.Module],
    rates: Sequence[float],
    maps: Maps,
    masks: Tensor,
    rows: Tensor,
    steps: int,
    batch_size: int,
    after_step: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> None:
    """Train each head at its own rate, all on the same batches of `rows`: Adam, cosine to zero after a warm-up."""
    pairs = [(one, torch.optim.Adam(one.parameters(), lr=rate), rate) for one, rate in zip(heads, rates, strict=True)]
    schedule, size = Schedule(1.0, "cosine", round(WARMUP * steps), steps), min(batch_size, len(rows))
    a_pass = len(rows) // size
    for one in heads:
        one.train()
    for step in range(steps):
        epoch, place = divmod(step, a_pass)
        if place == 0:
            order = sent(rows[permutation(stream_key(0, "segment order", epoch), len(rows))], masks.device)
        batch = order[place * size : (place + 1) * size]
        shown, truth = maps(batch), masks[batch].long()
        for one, optimizer, rate in pairs:
            optimizer.param_groups[0]["lr"] = rate * schedule.rate(step + 1)
            loss = mean_loss(logits(one, shown, truth.shape[-1]), sent(truth, shown.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        after_step(step + 1, loss.detach())


def mean_loss(found: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy over the pixels that count; 0 where none does.

    Over images a GPU sums in any order, which runtime.deterministic=true refuses; over rows it does not.
    """
    if found.is_cuda:
        found, truth = found.movedim(1, -1).flatten(0, -2), truth.flatten()
    total = F.cross_entropy(found, truth, ignore_index=IGNORED, reduction="sum")
    return total / (truth != IGNORED).sum().clamp(min=1)


def confusion_of(network: nn.Module, maps: Maps, masks: Tensor, rows: Tensor, classes: int, batch_size: int) -> Tensor:
    """(C, C) int64 counts of pixels by true class (row) and by the head's (column), without those that are ignored."""
    network.eval()
    total = torch.zeros(classes, classes, dtype=torch.int64)
    with torch.no_grad():
        for batch in sent(rows, masks.device).split(batch_size):
            guess = logits(network, maps(batch), masks.shape[-1]).argmax(1)
            total += confusion(masks[batch].cpu(), guess.cpu(), classes)
    return total


def confusion(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    """(C, C) int64 of two tensors of class numbers."""
    kept = truth != IGNORED
    pairs = truth[kept].long() * classes + guess[kept].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, (C,) float64; NaN for a class that is neither there nor guessed."""
    right = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return torch.where(union > 0, right / union.clamp(min=1), torch.nan)


def scores(counts: Tensor, names: Sequence[str], background: int | None) -> Facts:
    """mIoU over the classes that are there or guessed, the same without the background, pixel accuracy, and each IoU.

    Raises:
        ValueError: no pixel counts.
    """
    each = iou(counts)
    if each.isnan().all():
        raise ValueError("no pixel counts")
    found: Facts = {"miou": each.nanmean().item()}
    things = torch.arange(len(each)) != background
    if background is not None and background < len(each) and not each[things].isnan().all():
        found["miou_without_background"] = each[things].nanmean().item()
    found["pixel_accuracy"] = (counts.diagonal().sum().double() / counts.sum()).item()
    listed = {name: None if value != value else value for name, value in zip(names, each.tolist(), strict=True)}
    return {**found, "iou": listed}
