"""A step of phase 1 against one of BYOL: the same network, the same views, no forward of the target network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results, measured_row
from rela_cli.commands.bench.timing import Contestant, race, ratios, spread
from rela_cli.commands.bench.training import one_epoch, thumbnails, trainer
from rela_cli.training.trainer import Trainer

NAME = "step"
GPU_TARGETS = {512: 25_000.0, 128: 18_000.0}  # pairs a second
PAIRS = 51_200  # a round on a GPU


def run(bench: Bench) -> Iterator[BenchRow]:
    """One step at batch 128 on the CPU, views at hand; on a GPU the loop with its data."""
    if not bench.wants(NAME, "byol"):
        return
    if "cpu" in bench.devices:
        yield from on_cpu(bench)
    if "cuda" in bench.devices:
        if torch.cuda.is_available():
            for batch, target in GPU_TARGETS.items():
                yield from on_gpu(bench, batch, target)
        else:
            bench.skip(NAME, "GPU rows", "torch sees no GPU here")


def on_cpu(bench: Bench) -> Iterator[BenchRow]:
    """The full ResNet-18; views are drawn beforehand."""
    batch, width = bench.size(128, 16), bench.size(64, 4)
    loops = two_trainers(bench, batch, batch, width, "cpu")
    pixels, _ = material.images(bench, batch)
    views = loops[0].views[1](pixels, torch.arange(batch), 0)
    for loop in loops:
        loop.make_views = lambda images, rows, epoch: views  # type: ignore[method-assign]
    contestants = [
        Contestant("phase 1", partial(one_epoch, loops[0]), is_ours=True),
        Contestant("byol", partial(one_epoch, loops[1])),
    ]
    work = f"phase 1 against BYOL, time a step, ResNet-18 of width {width} at 32 px, batch {batch}"
    comparisons = [Comparison("phase 1", "byol", work, 0.8, "cpu", "most")]
    yield from bench.scores(NAME, contestants, comparisons, outcome)


def outcome(results: Results, peer: str) -> str:
    """That both learn something."""
    return f"losses {results['phase 1']:.3f} and {results[peer]:.3f}, which are of two kinds"


def two_trainers(bench: Bench, n: int, batch: int, width: int, device: str) -> tuple[Trainer, Trainer]:
    """A trainer in phase 1 and one of plain BYOL, alike in all else."""
    pixels, labels = material.images(bench, n)
    words = f"learner.width={width}", f"batch_size={batch}", f"runtime.device={device}"
    return trainer(pixels, labels, thumbnails(pixels), *words), trainer(pixels, labels, None, *words)


def on_gpu(bench: Bench, batch: int, target: float) -> Iterator[BenchRow]:
    """Image pairs a second, views and all."""
    pairs = bench.size(PAIRS, 4 * batch)
    loops = two_trainers(bench, pairs, batch, bench.size(64, 4), "cuda")
    contestants = [
        Contestant("phase 1", partial(one_epoch, loops[0]), is_ours=True),
        Contestant("byol", partial(one_epoch, loops[1]), is_ours=True),
    ]
    records = race(contestants, bench.rounds, lambda who, error: None)
    rates = [spread(pairs / timing.wall for timing in records[name].rounds) for name in ("phase 1", "byol")]
    ratio = ratios(records["phase 1"], records["byol"], "wall")
    work = f"phase 1, ResNet-18 at 32 px, batch {batch}, views included, {torch.cuda.get_device_name()}"
    text = f"BYOL {rates[1].median:,.0f} pairs/s; warm-up {records['phase 1'].warm_up.wall:.1f} s"
    yield measured_row(NAME, work, "byol", ratio, rates[0], target, "pairs/s", text)
