"""Stage 3: train the learner on a dynamic subset, first towards its targets, then with the method itself.

Shapes: B batch, D feature_dim, k target_dim, S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rela_cli.config.lengths import Lengths
from rela_cli.config.schema import Config
from rela_cli.data.batches.boxes import CachedViews
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import side_of
from rela_cli.data.batches.tokens import TokenTargets
from rela_cli.distributed import ranks
from rela_cli.learners.build import feature_dim, load_state, saved_state
from rela_cli.machine import memory, threads
from rela_cli.machine.device import count_flops, synchronize
from rela_cli.machine.precision import trains_in
from rela_cli.optim import memory_bytes
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts, write_atomic
from rela_cli.training.checkpoint import Checkpoints, Saved, tensor_bytes
from rela_cli.training.goals import Goals
from rela_cli.training.graph_trial import with_step
from rela_cli.training.logs import Metrics
from rela_cli.training.resume import rank_seed
from rela_cli.training.trainee import compile_networks
from rela_cli.training.trainer import Trainer
from rela_cli.transports.base import matched_width
from rela_cli.weights.run_folder import backbone_name

TRIAL = 64  # images, at most, of a step that is tried out


def read_targets(entry: Entry, width: int) -> Tensor:
    """The learner's targets (N, k) fp16: the first k components where they are ordered, else all."""
    targets, facts = load_file(entry.folder / "train.safetensors")["targets"], entry.manifest or {}
    return targets[:, : matched_width(width, targets.shape[1], facts["ordered"], facts.get("per_feature", 1))]


def read_views(entry: Entry, width: int, seed: int) -> CachedViews:
    """The boxes of light views, and the first `width` components of the targets of each: (N, K, width) fp16."""
    targets = load_file(entry.folder / "train.safetensors")["targets"]
    boxes = load_file(entry.folder / "boxes.safetensors")["boxes"]
    return CachedViews(boxes, targets.unflatten(1, (boxes.shape[1], -1))[..., :width], seed)


def read_tokens(entry: Entry, channels: int, side: int, size: int) -> TokenTargets:
    """The targets of the cells of each image's map, or of those of its views, for a learner's map of so many channels.

    side, size: pixels of the stored images, and of their middle, which is shown.
    """
    facts = entry.manifest or {}
    maps = read_targets(entry, channels).unflatten(0, (-1, facts["views"], facts["cells"]))
    return TokenTargets(maps, side, size, facts["covered"])


def train(
    config: Config,
    lengths: Lengths,
    images: Split,
    goals: Goals | None,
    data: ImageStats,
    checkpoints: Checkpoints,
    saved: Saved | None,
    metrics: Metrics,
) -> Facts:
    """Train on images, towards the goals of phase 1 first if there are any; write the backbones; what a manifest says.

    With a `saved` training it goes on from there. backbone.safetensors is the online network,
    backbone_target.safetensors the target network of methods with one.

    Raises:
        NonFiniteError: a gradient was NaN or Inf; the weights before it are untouched.
    """
    trainer = Trainer(with_step(config), lengths, images, goals, data)
    costs = tried(trainer, saved)
    trainer.begin(checkpoints, saved)
    ensure_room(trainer, checkpoints)
    trainer.fit(metrics)
    synchronize(trainer.device)
    facts = summary(trainer, costs)
    if ranks.is_first():
        for name, network in trainer.trainee.method.networks().items():
            write_backbone(network, checkpoints.folder / backbone_name(name))
    return facts


def ensure_room(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Before the first step: whether the disk has room for the checkpoints to come.

    Raises:
        DiskError: it has not.
    """
    if trainer.position.step < trainer.lengths.total_steps:
        optimizer_bytes = memory_bytes(trainer.config.optimizer, trainer.trainable)
        checkpoints.ensure_room(tensor_bytes(trainer.trainee.state_dict()) + optimizer_bytes)


def write_backbone(network: nn.Module, path: Path) -> None:
    """A state dict under its own key names, as `learners.build.tried_out` has written it once before any work."""
    state = saved_state(network)
    write_atomic(path, lambda temporary: save_file(state, temporary))


def summary(trainer: Trainer, costs: dict[int, int]) -> Facts:
    """What result.json says about training."""
    total = trainer.lengths.total_steps
    phase1 = 0 if trainer.switch is None else (trainer.position.switch_step or total + 1) - 1
    return {
        "steps": total,
        "samples_seen": trainer.lengths.samples_seen,
        "switch_step": trainer.position.switch_step,
        "phase1_steps": phase1,
        "collapsed": trainer.position.collapsed,
        "feature_dim": feature_dim(trainer.trainee.method.backbone),
        "target_dim": trainer.sizes.target,
        "seconds": trainer.checkpointing.seconds_so_far(),
        "flops": phase1 * costs.get(1, 0) + (total - phase1) * costs[2],
        "image_size": trainer.data.size,  # with mean and std, what the backbone wants to be fed
        "decoded_size": side_of(trainer.images),  # of which it was shown the middle
        "mean": trainer.data.mean.tolist(),
        "std": trainer.data.std.tolist(),
        "peak_memory_bytes": trainer.checkpointing.peak_memory(),
        "device": str(trainer.device),
        "precision": trains_in(trainer.config.runtime, trainer.device),
        "threads": torch.get_num_threads(),
        "world_size": ranks.world(),
        "batch_per_rank": trainer.config.batch_size // ranks.world(),
    }


# ------------------------------------------------------------------------------------------------- steps on trial


def tried(trainer: Trainer, saved: Saved | None) -> dict[int, int]:
    """Try steps: the FLOPs of one of each phase. Then the threads are chosen, and all is ready for the first step."""
    costs = step_flops(trainer)
    choose_threads(trainer, saved.threads if saved else None)
    memory.give_back()
    synchronize(trainer.device)
    compile_networks(trainer.trainee, trainer.config.runtime.compile)
    torch.manual_seed(rank_seed(trainer.config, 0))
    return costs


def step_flops(trainer: Trainer) -> dict[int, int]:
    """FLOPs of one step of each phase that may come, forward and backward, of all ranks together."""
    rows, images = next(trainer.draw_batches(0))
    costs = {}
    with unchanged(trainer):
        for phase in {trainer.position.phase, 2}:
            trainer.position.phase = phase
            views = trainer.make_views(images, rows, 0)
            costs[phase] = count_flops(partial(try_step, trainer, views, rows)) * ranks.world()
    return costs


def choose_threads(trainer: Trainer, recorded: int | None) -> None:
    """Those that training was begun with, else all, or one where that is clearly faster in a trial."""
    rows, images = next(trainer.draw_batches(0))
    rows, images = rows[:TRIAL], images[:TRIAL]
    with unchanged(trainer):
        work = lambda: try_step(trainer, trainer.make_views(images, rows, 0), rows)  # noqa: E731
        threads.choose(trainer.config.runtime, trainer.device, recorded, work)


def try_step(trainer: Trainer, views: Sequence[Tensor], rows: Tensor) -> None:
    """Forward and backward, without an update."""
    trainer.trainee(views, trainer.targets_of(views, rows, 0), trainer.labels_of(rows)).backward()


@contextmanager
def unchanged(trainer: Trainer) -> Iterator[None]:
    """Inside, steps may be tried: weights, buffers, gradients and the phase are put back afterwards.

    torch's random generator is not: it is seeded before training.
    """
    phase, state = trainer.position.phase, {k: v.clone() for k, v in trainer.trainee.state_dict().items()}
    yield
    trainer.position.phase = phase
    load_state(trainer.trainee, state)
    trainer.optimizer.zero_grad(set_to_none=True)
