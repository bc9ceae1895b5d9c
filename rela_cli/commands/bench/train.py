"""Training, data included: ours against a plain loop in the paper's style."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results
from rela_cli.commands.bench.paper import TwoViews, light_views
from rela_cli.commands.bench.timing import Contestant
from rela_cli.commands.bench.training import one_epoch, thumbnails, trainer
from rela_cli.learners.resnet import resnet18
from rela_cli.numerics.randomness import torch_seed

BATCH, WIDTH, EMA, WORKERS = 128, 8, 0.99, 2


def run(bench: Bench) -> Iterator[BenchRow]:
    """An epoch of phase 1 on 5,120 images, which both have in memory, decoded."""
    batch, n = bench.size(BATCH, 16), bench.size(40 * BATCH, 64)
    pixels, labels = material.images(bench, n)
    targets = thumbnails(pixels)
    words = f"learner.width={WIDTH}", f"batch_size={batch}", "runtime.device=cpu", "optimizer.lr=1e-3"
    loop = trainer(pixels, labels, targets, *words, "optimizer.weight_decay=0.01", "optimizer.schedule=constant")
    contestants = [
        Contestant("ours", partial(one_epoch, loop), is_ours=True),
        Contestant("paper", Plain(pixels, targets, batch).epoch),
    ]
    work = f"phase 1 with its data, ResNet-18 of width {WIDTH}, {n:,} images, batch {batch}, images a second"
    comparisons = [Comparison("ours", "paper", work, 1.7, "wall")]
    yield from bench.scores("train", contestants, comparisons, partial(outcome, bench.rounds + 1))


def outcome(epochs: int, results: Results, peer: str) -> str:
    """Where both losses are after as many epochs; draws and initial weights differ, the protocol does not."""
    return f"mean loss of epoch {epochs}: {results['ours']:.4f} against {results[peer]:.4f}"


class Plain:
    """Pillow views in loader workers, two passes, NCHW, foreach AdamW, the loss read at every step."""

    def __init__(
        self,
        pixels: Tensor,
        targets: Tensor,
        batch: int,
        width: int = WIDTH,
        device: str = "cpu",
        workers: int = WORKERS,
    ) -> None:
        data = material.stats(pixels)
        views = TwoViews(pixels, light_views(pixels.shape[-1], data))
        self.loader = loader(views, batch, workers, device)
        with torch_seed(0, "bench"):
            self.online = nn.Sequential(resnet18("cifar", width), projector(8 * width)).to(device)
            self.transfer = nn.Linear(8 * width, targets.shape[1]).to(device)
        self.target, self.targets, self.device = copy.deepcopy(self.online), targets, device
        parameters = [*self.online[0].parameters(), *self.transfer.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, foreach=True)

    def epoch(self) -> float:
        """One pass; the mean loss."""
        place = lambda x: x.to(self.device)  # noqa: E731
        losses = [self.step(place(one), place(other), place(self.targets[rows])) for one, other, rows in self.loader]
        return sum(losses) / len(losses)

    def step(self, one: Tensor, other: Tensor, targets: Tensor) -> float:
        """One update, and the running average."""
        close = [F.cosine_similarity(self.transfer(self.online[0](view)), targets).mean() for view in (one, other)]
        loss = 1 - (close[0] + close[1]) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.data = EMA * slow.data + (1 - EMA) * fast.data
        return loss.item()


def loader(views: Dataset[Any], batch: int, workers: int, device: str) -> DataLoader[Any]:
    """As training scripts have it; on a GPU the workers stay, and batches lie in pinned memory."""
    is_gpu = device == "cuda"
    return DataLoader(
        views,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=is_gpu and workers > 0,
        pin_memory=is_gpu,
    )


def projector(width: int) -> nn.Sequential:
    """BYOL's, which follows along in phase 1."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Linear(2 * width, 256))
