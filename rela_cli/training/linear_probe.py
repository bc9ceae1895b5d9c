"""A linear probe that is trained while the network trains, on the representations of the very views of each step.

Other libraries call it an online linear probe. It costs no forward pass of its own, sends no gradient into the network
and draws no random number, so the network's weights are the same bit for bit with it and without. Its accuracy is that
on the views of each batch before it learns from them, since the last record; it is no protocol, for the network moves
under it, and images are seen more than once.

Shapes: V views of B images of a step, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rela_cli.config.schema import Config
from rela_cli.distributed import ranks
from rela_cli.learners.build import feature_dim
from rela_cli.store.files import Facts
from rela_cli.store.notices import warn_once

RATE, MOMENTUM = 0.1, 0.9  # of SGD, on features that each batch standardises


class LinearProbe:
    """A head (D + 1, C), its bias in the last row, and how often it was right since the last record."""

    def __init__(self, backbone: nn.Module, width: int, classes: int, device: torch.device) -> None:
        self.head = torch.zeros(width + 1, classes, device=device)
        self.memory = torch.zeros_like(self.head)
        self.numbers = torch.arange(classes, device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = 0  # views since the last record
        self.found: list[Tensor] | None = None  # representations of a step, while one is listened to
        backbone.register_forward_hook(self.listen)

    def listen(self, _: nn.Module, __: object, output: Tensor) -> None:
        """Take note of what the network makes of some views."""
        if self.found is not None:
            self.found.append(output.detach())

    @contextmanager
    def watching(self, labels: Tensor) -> Iterator[None]:
        """Inside, a step of the network is taken on images with these labels (B,); then the head learns from it."""
        self.found = []
        try:
            yield
            self.learn(self.found[0] if len(self.found) == 1 else torch.cat(self.found), labels)
        finally:
            self.found = None

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Count how often the head is right about (V * B, D), then a step of logistic regression on them."""
        labels = labels.repeat(len(features) // len(labels))
        x = torch.batch_norm(features.float(), None, None, None, None, True, 0.0, 1e-5, False)
        x = torch.cat((x, x.new_ones(len(x), 1)), dim=1)
        shares = torch.softmax(x @ self.head, dim=1)
        self.right += (shares.argmax(1) == labels).sum()
        self.seen += len(labels)
        shares -= (labels[:, None] == self.numbers).float()  # scatter would not be deterministic on a GPU
        self.memory.mul_(MOMENTUM).addmm_(x.T, shares, alpha=1 / len(labels))
        self.head.sub_(self.memory, alpha=RATE)

    # ---------------------------------------------------------------------------------------- records and state

    def accuracy(self) -> float:
        """Since the last record; it waits for the device."""
        return int(self.right) / max(1, self.seen)

    def read(self) -> Facts:
        """The accuracy, for a record; from here on it is counted anew."""
        found = {"linear": self.accuracy()} if self.seen else {}
        self.right.zero_()
        self.seen = 0
        return found

    def state(self) -> Facts:
        """All that its steps to come depend on."""
        return {"head": self.head, "memory": self.memory, "right": self.right, "seen": self.seen}

    def load_state(self, state: Facts) -> None:
        """Go on where another one stood."""
        for name in ("head", "memory", "right"):
            getattr(self, name).copy_(state[name])
        self.seen = state["seen"]


def linear_probe(config: Config, backbone: nn.Module, classes: int | None, device: torch.device) -> LinearProbe | None:
    """The one of a run: where there are labels, unless probe.in_training says no. With several ranks rank 0 has it."""
    if classes is None and config.probe.in_training:
        warn_once("probe.in_training=true has no effect: the train images have no labels")
    if classes is None or config.probe.in_training is False or not ranks.is_first():
        return None
    return LinearProbe(backbone, feature_dim(backbone), classes, device)
