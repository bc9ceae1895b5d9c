"""A trainer as stage train makes it, on images at hand, and its loop by the epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.commands.bench import material
from rela_cli.config.compose import compose
from rela_cli.config.lengths import lengths
from rela_cli.data.batches.cache import Split
from rela_cli.machine.device import synchronize
from rela_cli.training.goals import Goals
from rela_cli.training.graph_trial import with_step
from rela_cli.training.trainer import Trainer
from rela_cli.transports.pca import Whitening

COMMON = ("dataset=fake", "prior=patches", "switch=never", "learner=resnet18", "learner.stem=cifar", "method=byol")
MANY_EPOCHS = 1000  # epochs that nobody waits for


def trainer(pixels: Tensor, labels: Tensor, targets: Tensor | None, *words: str) -> Trainer:
    """BYOL with a ResNet-18 on some images; phase 1 for ever with targets, phase 2 without."""
    config = with_step(compose([*COMMON, f"epochs={MANY_EPOCHS}", "runtime.eval_every_epochs=0", *words]))
    goals = None if targets is None else Goals(targets)
    made = Trainer(config, lengths(config, len(pixels)), Split(pixels, labels), goals, material.stats(pixels))
    made.trainee.train()
    return made


def thumbnails(pixels: Tensor) -> Tensor:
    """Targets that need no prior: (N, 3, S, S) uint8 -> (N, 48), each image at 4 x 4 pixels, whitened."""
    small = F.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(1)
    mapping = Whitening(small.shape[1])
    mapping.fit(small.split(8192))
    return mapping(small).float()


def one_epoch(loop: Trainer) -> float:
    """The next epoch as `Trainer.fit` takes it; the mean loss."""
    losses = []
    epoch = loop.position.step // loop.lengths.steps_per_epoch
    for rows, images in loop.draw_batches(epoch):
        loop.start_step()
        if loop.graph is not None:
            loss = loop.graph(rows, images, epoch)
        else:
            loss = loop.loss_of(loop.make_views(images, rows, epoch), rows, epoch)
            loss.backward()
        loop.update()
        losses.append(loss.detach())
        loop.keep(losses[-1])
        loop.read_now_and_then()
    synchronize(loop.device)
    return float(torch.stack(losses).mean())
