"""Fine-tuning: all weights of a network and a fresh linear head, trained with a share of the labels.

The rate is chosen on a held-out tenth of the labelled images; then all of them train, for as many steps again. Test
images are looked at once, at the end. A training that was stopped goes on from its last checkpoint.

Shapes: B batch, C classes, S pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import Config, View
from rela_cli.data.base import Dataset
from rela_cli.data.batches.cache import Split, read_split, read_stats
from rela_cli.data.batches.loader import centre, in_blocks, load
from rela_cli.data.batches.views import Augment
from rela_cli.errors import ConfigError, NonFiniteError
from rela_cli.evaluation.protocols import accuracy, nine_tenths
from rela_cli.learners.build import load_state
from rela_cli.machine.device import count_flops, pick_device
from rela_cli.machine.progress import Progress
from rela_cli.machine.signals import deferred
from rela_cli.numerics.randomness import permutation, stream_key, torch_seed
from rela_cli.optim import Schedule
from rela_cli.priors.base import NetworkPrior
from rela_cli.priors.fitting import built_prior
from rela_cli.priors.pooling import vectors
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts
from rela_cli.training.checkpoint import Checkpoints
from rela_cli.training.resume import load_optimizer

RATES = {"adamw": (3e-4, 1e-3, 3e-3), "sgd": (0.003, 0.01, 0.03)}  # what the held-out tenth chooses among
DECAYS = {"adamw": 0.05, "sgd": 5e-4}  # of weights; norms and biases have none
MOMENTUM = 0.9
WARMUP = 0.1  # share of the steps


class Classifier(nn.Module):
    """A network with a linear head: views (B, 3, S, S), normalised -> (B, C)."""

    def __init__(self, prior: NetworkPrior, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone, self.pool = prior.backbone, prior.pool
        with torch_seed(seed, "init", "head"):
            self.head = nn.Linear(prior.feature_dim, classes)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(vectors(self.backbone(views), self.pool).float())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Data:
    """The images and labels that are trained on, and those of test."""

    train: Split
    test: Split
    rows: Tensor  # of train, those whose labels may be seen
    classes: int
    flip: bool

    def labels(self, rows: Tensor) -> Tensor:
        """(B,)"""
        assert self.train.labels is not None
        return self.train.labels[rows.to(self.train.labels.device)]


def labelled_rows(labels: Tensor, share: float, seed: int) -> Tensor:
    """Rows of a share of each class, and of one at least, in order; a smaller share is a part of a larger one."""
    order = permutation(stream_key(seed, "label share"), len(labels))
    ranked = labels[order]
    kept = [order[ranked == label][: max(1, round(share * int((ranked == label).sum())))] for label in labels.unique()]
    return torch.cat(kept).sort().values


def read_data(config: Config, images: Entry, dataset: Dataset) -> Data:
    """What a run's images hold for a fine-tuning."""
    fitted = "labelled" if "labelled" in dataset.splits else "train"
    train, test = read_split(images, fitted, dataset), read_split(images, "test", dataset)
    assert train is not None and test is not None and train.labels is not None
    rows = labelled_rows(train.labels, config.probe.label_share, config.seed)
    return Data(train, test, rows, int(train.labels.max()) + 1, dataset.flip)


def finetune(config: Config, images: Entry, dataset: Dataset, folder: Path) -> Facts:
    """Fine-tune the network that is the config's prior; its number on test. `folder` keeps the checkpoints.

    Raises:
        ConfigError: the prior is no network that can be trained. NonFiniteError: no rate gave a finite loss.
    """
    return Finetuning(config, images, read_data(config, images, dataset), folder).run()


class Finetuning:
    """The trainings of one network: one for each rate on nine tenths of the labels, and a last one on all of them."""

    def __init__(self, config: Config, images: Entry, data: Data, folder: Path) -> None:
        self.config, self.settings, self.data = config, config.probe, data
        self.stats, self.device = read_stats(images), pick_device(config.runtime)
        self.checkpoints = Checkpoints(folder, config.checkpoint.every_seconds)
        assert data.train.labels is not None
        self.labels = data.train.labels.to(self.device)
        given = self.settings.finetune_lr
        self.rates = (given,) if given else RATES[self.settings.finetune_optimizer]
        self.scores: list[float] = []  # held-out accuracy of each rate that is done
        self.started, self.seconds = time.perf_counter(), 0.0  # of this process, and of those before it

    def run(self) -> Facts:
        """The number, with the rate that was chosen and what it cost."""
        if self.data.rows.numel() < 2:
            raise ConfigError("finetune needs two labelled images at the least: say a larger probe.label_share")
        saved = self.resumed()
        rest, held_out = self.parts()
        for number in range(len(self.scores), len(self.rates) if len(self.rates) > 1 else 0):
            model, saved = self.trained(rest, self.rates[number], number, saved), None
            self.scores.append(self.held_out_accuracy(model, held_out))
        rate = self.rates[self.scores.index(max(self.scores))] if self.scores else self.rates[0]
        model = self.trained(self.data.rows, rate, len(self.scores), saved)
        assert self.data.test.labels is not None
        number_on_test = accuracy(self.logits(model, self.data.test.images), self.data.test.labels)
        flops = self.flops(model) * (len(self.scores) + 1)
        self.checkpoints.clear()
        facts = {"rate": rate, "labels": len(self.data.rows), "steps": self.settings.finetune_steps, "flops": flops}
        return {**number_on_test, **facts, "seconds": self.seconds_so_far()}

    def resumed(self) -> Facts | None:
        """What an earlier process has left, which is said; None if nothing."""
        saved = self.checkpoints.latest()
        if saved is None:
            return None
        self.scores, self.seconds = list(saved.state["scores"]), float(saved.state["seconds"])
        print(f"  finetune  resumed at step {saved.state['step']} of training {saved.state['number'] + 1}", flush=True)
        return saved.state

    def parts(self) -> tuple[Tensor, Tensor]:
        """Rows to choose the rate by: nine tenths of the labels to train on, a tenth to judge by."""
        if len(self.rates) == 1:
            return self.data.rows, self.data.rows
        rest, held_out = nine_tenths(self.data.labels(self.data.rows))
        return self.data.rows[rest], self.data.rows[held_out]

    # ------------------------------------------------------------------------------------------------ a training

    def trained(self, rows: Tensor, rate: float, number: int, state: Facts | None) -> Classifier:
        """A training from the start, or from where `state` has it.

        Raises:
            NonFiniteError: the loss is not finite. Stopped: a signal has come; the training is saved.
        """
        model = self.model()
        optimizer = self.optimizer(model, rate)
        total, first = self.settings.finetune_steps, 0
        if state and state["number"] == number and state["step"]:
            first = state["step"]
            load_state(model, state["model"])
            load_optimizer(optimizer, state["optimizer"])
        schedule = Schedule(1.0, "cosine", round(WARMUP * total), total)
        self.checkpoints.restart(number * total + first, number)
        title = f"finetune {number + 1} of {len(self.rates) + (len(self.rates) > 1)}"
        model.train()
        with Progress(title, total) as progress, deferred() as signals:
            batches = load(self.data.train.images, self.batches(rows, first), self.device)
            for step, (batch, pixels) in enumerate(batches, first + 1):
                self.step(model, optimizer, schedule.rate(step), batch, pixels, step)
                at = number * total + step
                if signals or self.checkpoints.is_due(at, number, is_last=step == total):
                    self.save(at, number, step, model, optimizer)
                if signals:
                    raise signals[0]
                progress.show(step)
        return model

    def model(self) -> Classifier:
        """The network as it is before, with a fresh head.

        Raises:
            ConfigError: nothing in it can be trained.
        """
        prior = built_prior(self.config, self.stats)
        if not isinstance(prior, NetworkPrior) or not any(True for _ in prior.backbone.parameters()):
            raise ConfigError(f"prior={self.config.prior.name} is no network whose weights can be trained")
        self.preprocess = prior.preprocess
        self.drawing = self.light_view()
        return Classifier(prior, self.data.classes, self.config.seed).to(self.device)

    def optimizer(self, model: Classifier, rate: float) -> torch.optim.Optimizer:
        """AdamW or SGD with momentum, over groups with a rate of their own; a group keeps its factor on the rate."""
        kind, decay = self.settings.finetune_optimizer, self.settings.finetune_weight_decay
        decay = DECAYS[kind] if decay is None else decay
        groups = [
            {"params": some, "weight_decay": decay * is_matrix, "rate": rate * factor}
            for parameters, factor in layers(model, self.settings.finetune_layer_decay)
            for is_matrix in (True, False)
            if (some := [p for p in parameters if (p.ndim > 1) == is_matrix])
        ]
        if kind == "adamw":
            return torch.optim.AdamW(groups, lr=rate, fused=True)
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, fused=True)

    def batches(self, rows: Tensor, taken: int) -> Iterator[Tensor]:
        """Rows (B,) of each step but the `taken` first: pass after pass in a new order, partial batches dropped."""
        size = min(self.settings.finetune_batch_size, len(rows))
        steps_a_pass = len(rows) // size
        for step in range(taken, self.settings.finetune_steps):
            epoch, place = divmod(step, steps_a_pass)
            order = permutation(stream_key(self.config.seed, "finetune order", epoch), len(rows))
            yield rows[order[place * size : (place + 1) * size]]

    def step(self, model: Classifier, optimizer: Any, share: float, batch: Tensor, pixels: Tensor, step: int) -> None:
        """One update at a share of the rate.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share
        loss = F.cross_entropy(model(self.augment(pixels, batch, step)), self.labels[batch])
        if step % 50 == 0 and not loss.isfinite():
            raise NonFiniteError(f"finetune: the loss is {loss.item()} at step {step}; say a smaller probe.finetune_lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def augment(self, pixels: Tensor, rows: Tensor, step: int) -> Tensor:
        """One light view of each image: a random crop and a flip, at the size that the network is fed."""
        views = self.drawing(pixels, rows, step)
        return views.flip(1) if self.preprocess.channels == "bgr" else views

    def light_view(self) -> Augment:
        """What draws these, made once for a training: a GPU is waited for when its constants are made."""
        view = View(crop_scale=(self.settings.finetune_min_crop, 1.0), jitter_p=0.0, gray_p=0.0)
        fed = self.preprocess
        mean, std = (torch.tensor(values, device=self.device) for values in (fed.mean, fed.std))
        size = fed.image_size or self.stats.size
        return Augment(view, size, mean, std, stream_key(self.config.seed, "finetune"), 0, self.data.flip)

    def save(self, at: int, number: int, step: int, model: Classifier, optimizer: Any) -> None:
        """All that the steps to come depend on."""
        state = {
            "number": number,
            "step": step,
            "scores": self.scores,
            "seconds": self.seconds_so_far(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict()["state"],
        }
        self.checkpoints.save(at, number, state)

    def seconds_so_far(self) -> float:
        """Those of earlier processes included."""
        return self.seconds + time.perf_counter() - self.started

    # ------------------------------------------------------------------------------------------------- judging

    def held_out_accuracy(self, model: Classifier, rows: Tensor) -> float:
        """Top-1 on some labelled images of train."""
        shown = self.data.train.images[rows]
        return accuracy(self.logits(model, shown), self.data.labels(rows))["top1"]

    def logits(self, model: Classifier, images: Any) -> Tensor:
        """(N, C) of clean views, in eval mode."""
        model.eval()
        shown = lambda x: model(self.preprocess(centre(x, self.stats.size)))  # noqa: E731
        return torch.cat(list(in_blocks(shown, images, self.config.runtime.block_size, self.device)))

    def flops(self, model: Classifier) -> int:
        """FLOPs of one training: forward and backward of every image that it sees."""
        size = self.preprocess.image_size or self.stats.size
        views = torch.zeros(1, 3, size, size, device=self.device)
        batch = min(self.settings.finetune_batch_size, len(self.data.rows))
        return count_flops(lambda: model.eval()(views).sum().backward()) * batch * self.settings.finetune_steps


def layers(model: Classifier, decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters from the input to the head, each layer with its factor on the rate: 1 for the head, less below it.

    A layer is a block of the network, or a module beside them; a norm goes with what comes before it. With a factor
    `decay` a layer it is as in BEiT (Bao et al. 2021, appendix) and MAE (He et al. 2021, table 9).
    """
    found = [[*model.backbone.parameters(recurse=False)]]  # in none of its children, such as tokens and positions
    for module in depth_blocks(model.backbone):
        parameters = [*module.parameters()]
        if all(parameter.ndim <= 1 for parameter in parameters) or not found[-1]:
            found[-1] += parameters
        else:
            found.append(parameters)
    depth = len(found)
    graded = [(parameters, decay ** (depth - i)) for i, parameters in enumerate(found) if parameters]
    return [*graded, ([*model.head.parameters()], 1.0)]


def depth_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network in order; a sequence of blocks is taken apart."""
    for child in network.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from child
        else:
            yield child
