"""A linear probe that is trained while the network trains, on the representations of the very views of each step.

Other libraries call it an online linear probe. It costs no forward pass of its own, sends no gradient into the network
and draws no random number, so the network's weights are the same bit for bit with it and without. Its accuracy is that
on the views of each batch before it learns from them, since the last record; it is no protocol, for the network moves
under it, and images are seen more than once.

Shapes: V views of B images of a step, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        self.tally = torch.zeros(2, dtype=torch.int64, device=device)  # right, and all, views since the last record
        self.known = (0, 0)  # the tally as the host has read it last
        self.found: list[Tensor] | None = None  # representations of a step, while one is listened to
        backbone.register_forward_hook(self.listen)

    def listen(self, _: nn.Module, __: object, output: Tensor) -> None:
        """Take note of what the network makes of some views."""
        if self.found is not None:
            self.found.append(output.detach())

    @contextmanager
    def listening(self) -> Iterator[list[Tensor]]:
        """Inside, what the network makes of views goes into this list."""
        self.found = []
        try:
            yield self.found
        finally:
            self.found = None

    @torch.no_grad()
    def learn(self, found: Sequence[Tensor], labels: Tensor) -> None:
        """Count how often the head is right about what was found of images with labels (B,), then learn from it.

        found: V * B representations in all, one or several views in each. A step of logistic regression on them.
        """
        features = found[0] if len(found) == 1 else torch.cat(tuple(found))
        labels = labels.repeat(len(features) // len(labels))
        x = torch.batch_norm(features.float(), None, None, None, None, True, 0.0, 1e-5, False)
        x = torch.cat((x, x.new_ones(len(x), 1)), dim=1)
        shares = torch.softmax(x @ self.head, dim=1)
        self.tally[0].add_((shares.argmax(1) == labels).sum())
        self.tally[1].add_(len(labels))
        shares.add_(labels[:, None] == self.numbers, alpha=-1)  # scatter would not be deterministic on a GPU
        self.memory.mul_(MOMENTUM).addmm_(x.T, shares, alpha=1 / len(labels))
        self.head.sub_(self.memory, alpha=RATE)

    # ---------------------------------------------------------------------------------------- records and state

    def accuracy(self) -> float:
        """Since the last record, as far as the host has read it."""
        right, seen = self.known
        return right / max(1, seen)

    def facts(self) -> Facts:
        """The accuracy, for a record, once the host has read it; from here on it is counted anew."""
        found = {"linear": self.accuracy()} if self.known[1] else {}
        self.tally.zero_()
        self.known = (0, 0)
        return found

    def state(self) -> Facts:
        """All that its steps to come depend on."""
        right, seen = self.tally.tolist()
        return {"head": self.head, "memory": self.memory, "right": torch.tensor(right), "seen": seen}

    def load_state(self, state: Facts) -> None:
        """Go on where another one stood."""
        for name in ("head", "memory"):
            getattr(self, name).copy_(state[name])
        self.known = int(state["right"]), state["seen"]
        self.tally.copy_(torch.tensor(self.known))


def linear_probe(config: Config, backbone: nn.Module, classes: int | None, device: torch.device) -> LinearProbe | None:
    """The one of a run: where there are labels, unless probe.in_training says no. With several ranks rank 0 has it."""
    if classes is None and config.probe.in_training:
        warn_once("probe.in_training=true has no effect: the train images have no labels")
    if classes is None or config.probe.in_training is False or not ranks.is_first():
        return None
    return LinearProbe(backbone, feature_dim(backbone), classes, device)
