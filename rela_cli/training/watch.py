"""Is the training healthy? Gradients that are not finite, and representations that collapse."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from rela_cli.config.lengths import Lengths
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import ImageStats
from rela_cli.data.batches.loader import Images
from rela_cli.data.batches.subset import batches
from rela_cli.distributed import ranks
from rela_cli.errors import CollapseError, NonFiniteError
from rela_cli.evaluation.measures import dimension_std, effective_rank, knn_top1
from rela_cli.evaluation.representation import representations
from rela_cli.machine import memory
from rela_cli.methods.base import Method
from rela_cli.store.files import Facts
from rela_cli.training.resume import Position

COLLAPSED_RANK, COLLAPSED_DEVIATION = 2.0, 0.05  # measured in docs/reliability.md: healthy runs stay above 7 and 0.14

WATCHED_IMAGES = 2000  # train images that kNN and effective rank look at while it runs

WATCHED_K = 20  # neighbours for that; a glance, not the knn protocol

SETTLED = 50  # steps before which running statistics say too little to judge collapse by


class Watch:
    """Says what is wrong with the gradients of a step, or with the representation."""

    def __init__(self, config: Config, lengths: Lengths, position: Position) -> None:
        self.config, self.lengths, self.position = config, lengths, position

    def must_be_finite(self, bad: Tensor) -> None:
        """Check the gradients of the last steps, (n,), as the host has read them: 1 where one was not finite.

        Raises:
            NonFiniteError: one was not finite. Its update was held back, so the weights are still good.
        """
        if where := bad.nonzero().flatten().tolist():
            raise self.non_finite_error(self.position.step - len(bad) + 1 + where[0])

    def non_finite_error(self, step: int) -> NonFiniteError:
        """The error of a step, with its phase, its epoch and its samples."""
        epoch, place = divmod(step - 1, self.lengths.steps_per_epoch)
        batch = next(batches(self.config.seed, epoch, self.lengths, self.config.batch_size, place))
        at, samples = self.position, batch.tolist()
        phase = 1 if at.phase == 1 or (at.switch_step and step < at.switch_step) else 2
        shown = ", ".join(map(str, samples[:8]))
        return NonFiniteError(
            f"NaN or Inf in the gradients of step {step} (phase {phase}, epoch {epoch + 1}, samples {shown}, "
            f"...). The update was not applied. A smaller optimizer.lr than {self.lr:g} is the usual way out",
            {"step": step, "phase": phase, "epoch": epoch + 1, "samples": samples},
        )

    def look(self, method: Method, images: Images, labels: Tensor | None, data: ImageStats) -> Facts:
        """Effective rank, deviation and kNN accuracy of the representation of some train images.

        Raises:
            CollapseError: the representation has collapsed, and on_collapse=stop.
        """
        facts = representation_facts(method.backbone, images, labels, data, self.config.runtime.block_size)
        self.check_collapse(facts["effective_rank"], facts["deviation"], method.uses_labels)
        return facts

    def check_collapse(self, effective_rank: float, deviation: float, uses_labels: bool) -> None:
        """Say once, while it happens, that the representation no longer tells images apart.

        Raises:
            CollapseError: on_collapse=stop.
        """
        if self.position.step < SETTLED:
            return
        one_direction = effective_rank < COLLAPSED_RANK and not uses_labels  # two classes need no more
        collapsed, before = one_direction or deviation < COLLAPSED_DEVIATION, self.position.collapsed
        self.position.collapsed = bool(before or collapsed)
        if not collapsed or before:
            return
        words = (
            f"the representation has collapsed at step {self.position.step}: effective rank {effective_rank:.3g} "
            f"(below {COLLAPSED_RANK:g} is collapse), deviation a dimension {deviation:.3g} "
            f"(below {COLLAPSED_DEVIATION:g} is)"
        )
        if self.config.on_collapse == "stop":
            raise CollapseError(f"{words}. A smaller optimizer.lr than {self.lr:g} is one way out")
        if ranks.is_first():
            print(f"rela: {words}. It goes on; on_collapse=stop would end it", file=sys.stderr, flush=True)

    @property
    def lr(self) -> float:
        """The learning rate of the config."""
        return self.config.optimizer.options["lr"]  # type: ignore[no-any-return]


def representation_facts(
    backbone: nn.Module, images: Images, labels: Tensor | None, data: ImageStats, block_size: int
) -> Facts:
    """Effective rank and deviation of the representation; with labels also the accuracy of kNN.

    It looks at 2,000 train images at most, evenly spaced; kNN is asked about a tenth of them, the rest is its bank.
    """
    rows = evenly(len(images), WATCHED_IMAGES)
    memory.give_back()  # what a step has freed would count on top of a block, and what a block has on top of a step
    features = representations(backbone, images[rows], data, block_size, next(backbone.parameters()).device)
    memory.give_back()
    facts: Facts = {
        "effective_rank": round(effective_rank(features), 3),
        "deviation": round(dimension_std(features), 4),
    }
    if labels is None:
        return facts
    labels, every = labels[rows.to(labels.device)], torch.arange(len(features), device=features.device)
    query, bank = every[::10], every[every % 10 != 0]
    facts["knn"] = knn_top1(features[bank], labels[bank], features[query], labels[query], WATCHED_K, 0.1)
    return facts


def evenly(count: int, most: int) -> Tensor:
    """Up to `most` of the rows 0..count-1, as far apart as they can be: (n,) int64."""
    chosen = min(count, most)
    return torch.arange(chosen) * count // max(1, chosen)
