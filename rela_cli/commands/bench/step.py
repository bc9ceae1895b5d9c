"""A step of phase 1 against one of BYOL: the same network, the same views, no forward of the target network.

On a GPU both against what people have: phase 1 against the paper's loop, BYOL against lightly's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from unittest import mock

import torch
from torch import Tensor

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results, measured_row
from rela_cli.commands.bench.lightly_byol import LightlyByol
from rela_cli.commands.bench.timing import Contestant, race, ratios, spread
from rela_cli.commands.bench.train import Plain
from rela_cli.commands.bench.training import one_epoch, thumbnails, trainer
from rela_cli.errors import first_line
from rela_cli.machine.device import count_flops, device_name, synchronize
from rela_cli.machine.precision import tf32
from rela_cli.machine.processors import cores
from rela_cli.training.trainer import Trainer

NAME = "step"
GPU_TARGETS = {128: 18_000.0, 512: 25_000.0}  # pairs a second

STEPS = 50  # of a round on a GPU


def run(bench: Bench) -> Iterator[BenchRow]:
    """One step at batch 128 on the CPU, views at hand; on a GPU the loop with its data."""
    if "cpu" in bench.devices and bench.wants(NAME, "byol"):
        yield from on_cpu(bench)
    if bench.has_gpu(NAME):
        for batch, target in GPU_TARGETS.items():
            yield race_of("phase 1", bench, batch, target, "cuda")
            yield race_of("byol", bench, batch, None, "cuda")


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


def race_of(name: str, bench: Bench, batch: int, target: float | None, device: str, *more: str) -> BenchRow:
    """Image pairs a second, views and all: ours against what people have; `more` are settings of ours.

    Peers have as many loader workers as there are cores, and TF32, which is torch's default for convolutions; lightly's
    BYOL computes in bf16, as ours does.
    """
    pairs, width, workers = bench.size(STEPS * batch, 4 * batch), bench.size(64, 4), bench.size(len(cores()), 0)
    pixels, labels = material.images(bench, pairs)
    targets = thumbnails(pixels) if name == "phase 1" else None
    words = f"learner.width={width}", f"batch_size={batch}", f"runtime.device={device}", *more
    loop, peer = trainer(pixels, labels, targets, *words), "lightly" if targets is None else "paper"
    contestants = [Contestant("ours", partial(one_epoch, loop), is_ours=True)]
    if bench.wants(NAME, peer):
        make = partial(LightlyByol, pixels) if targets is None else partial(Plain, pixels, targets)
        contestants.append(Contestant(peer, peer_epoch(partial(make, batch, width, device, workers), device)))
    records = race(contestants, bench.rounds, partial(dropped, bench))
    rates = {who: spread(pairs / timing.wall for timing in record.rounds) for who, record in records.items()}
    ratio = ratios(records[peer], records["ours"], "wall") if peer in records else None
    rate = flops_of_step(loop, pixels[:batch]) * rates["ours"].median / batch
    text = f"{rate / 1e12:.3g} TFLOP/s; warm-up {records['ours'].warm_up.wall:.1f} s"
    if peer in rates:
        text += f"; {peer} {rates[peer].median:,.0f} pairs/s"
    work = f"{name}, ResNet-18 at 32 px, batch {batch}, views included, {device_name(device)}"
    return measured_row(NAME, work, peer, ratio, rates["ours"], target, "pairs/s", text)


def dropped(bench: Bench, who: Contestant, error: Exception) -> None:
    """A peer that cannot run here is named."""
    bench.skip(NAME, who.name, f"{type(error).__name__}: {first_line(error)}")


def peer_epoch(make: Callable[[], Plain | LightlyByol], device: str) -> Callable[[], float]:
    """An epoch of a peer, which is made when it is first asked for."""
    made = cache(make)

    def epoch() -> float:
        with tf32(True):
            loss = made().epoch()
        synchronize(torch.device(device))
        return loss

    return epoch


def flops_of_step(loop: Trainer, images: Tensor) -> int:
    """FLOPs of the products and convolutions of one step, forward and backward."""
    rows, place = torch.arange(len(images), device=loop.device), images.to(loop.device)
    with mock.patch.object(loop, "graph", None):  # one that was recorded has no operators to count
        return count_flops(lambda: loop.add_gradients(rows, place, 0))
