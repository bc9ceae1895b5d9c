"""The checks and measurements of scripts/gpu_day.sh: a part a call, a JSON line on stdout for each thing found.

A line has name and text; a check also ok and limit; is_speed says that it means nothing in a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.commands.bench import extract, material, step
from rela_cli.commands.bench.contest import Bench, BenchRow
from rela_cli.commands.bench.training import COMMON, thumbnails, trainer
from rela_cli.config.compose import compose
from rela_cli.data.batches.cache import Split
from rela_cli.distributed.batch_norm import is_known
from rela_cli.evaluation.protocols import FITTERS, Task, accuracy
from rela_cli.machine.device import device_name, synchronize
from rela_cli.priors.fitting import fitted_prior
from rela_cli.stages.extract import run_prior
from rela_cli.training.graph_trial import reason_against
from rela_cli.training.step_count import count_step
from rela_cli.training.trainee import Sizes, take_views_together
from rela_cli.training.trainer import Trainer
from rela_cli.transports.pca import Whitening
from rela_cli.transports.random_projection import RandomProjection
from rela_cli.transports.standardize import Standardize

METHODS = ("byol", "dino", "simclr", "simsiam", "moco_v3", "barlow_twins", "vicreg", "swav", "supervised")
PRIORS = ("random", "patches", "embedded")
LIMITS = {"views": 1e-3, "loss": 1e-3, "gradient": 0.999, "features": 1e-3, "targets": 2e-2, "top1": 0.01}
STILL_STEPS = 50  # steps in which nothing may wait
FIRST_STEPS = 8  # before them: kernels are chosen, and a graph is recorded and compared
EAGER, GRAPH, AS_A_GRAPH = "runtime.step=eager", "runtime.step=graph", " as a graph"
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}  # TFLOP/s of dense bf16, by their data sheets
Line = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What this call is about."""

    device: str
    small: bool
    skip: frozenset[str]

    def size(self, full: int, small: int) -> int:
        """How much of something."""
        return small if self.small else full

    @property
    def bench(self) -> Bench:
        """As `rela bench` has it."""
        folder = Path(tempfile.mkdtemp(prefix="rela-gpu-day-"))
        return Bench(folder, rounds=self.size(3, 1), tiny=self.small, devices=(self.device,))


def found(name: str, text: str, **more: Any) -> Line:
    """A line."""
    return {"name": name, "text": text, **more}


def check(name: str, value: float, limit: float, text: str = "{:.2g}", least: bool = False) -> Line:
    """A line with a figure that has to keep to a limit."""
    sign = "at least" if least else "at most"
    return found(name, text.format(value), ok=value >= limit if least else value <= limit, limit=f"{sign} {limit:g}")


Part = Callable[[Asked], Iterator[tuple[str, Callable[[], Line]]]]


# --------------------------------------------------------------------------------------------------------------- sanity


def sanity(asked: Asked) -> Iterator[tuple[str, Callable[[], Line]]]:
    """Does the device give what the CPU gives, and does nothing wait?"""
    n = asked.size(256, 32)
    pixels, labels = material.images(asked.bench, n)
    yield "views", lambda: views(asked, pixels, labels)
    for method in METHODS:
        yield f"step of {method}", lambda method=method: one_step(asked, pixels, labels, f"method={method}", None)
    targets = thumbnails(pixels)
    yield "step of phase 1", lambda: one_step(asked, pixels, labels, "method=byol", targets)
    for way, words in ways(asked).items():
        for name in ("phase 1", "byol", "dino", "simclr"):
            full = f"no wait in {name}{way}"
            yield full, lambda name=name, full=full, words=words: no_wait(asked, name, full, *words)
    for prior in PRIORS:
        yield f"features of {prior}", lambda prior=prior: features(asked, prior, pixels, labels)
    for mapping in (Whitening(32), Standardize(), RandomProjection(32, 0)):
        name = type(mapping).__name__.lower()
        yield f"targets by {name}", lambda mapping=mapping, name=name: transported(asked, name, type(mapping))
    for protocol in FITTERS:
        yield f"probe {protocol}", lambda protocol=protocol: probed(asked, protocol)
    if not asked.small:
        yield "trial of a graph", graph_on_trial


def graph_on_trial() -> Line:
    """What runtime.step=auto, which the cells of Table 1 have, comes to on this machine."""
    why = reason_against(compose([*COMMON]), again=True)
    return found("trial of a graph", why or "went well", ok=not why)


def pair(asked: Asked, pixels: Tensor, labels: Tensor, targets: Tensor | None, *words: str) -> tuple[Trainer, Trainer]:
    """The same training on the CPU and on the device, in fp32."""
    width = f"learner.width={asked.size(16, 4)}"
    common = (f"batch_size={len(pixels)}", width, "runtime.precision=fp32", EAGER, *words)
    one, other = (trainer(pixels, labels, targets, *common, f"runtime.device={d}") for d in ("cpu", asked.device))
    if asked.small and is_known(other.trainee):  # the rehearsal goes the way of a GPU on the CPU
        take_views_together(other.trainee)
        other.start_phase(other.position.phase)
    return one, other


@contextmanager
def on(asked: Asked, kind: str) -> Iterator[torch.device]:
    """The CPU, or the device; in a rehearsal the second is the CPU on the way that a GPU goes."""
    if kind == "cpu" or not asked.small:
        yield torch.device(kind if kind == "cpu" else asked.device)
        return
    with mock.patch.object(Tensor, "is_cuda", property(lambda self: True)):
        yield torch.device("cpu")


def first_batch(loop: Trainer) -> tuple[Tensor, Tensor]:
    """Rows and images of its first step."""
    return next(iter(loop.draw_batches(0)))


def views(asked: Asked, pixels: Tensor, labels: Tensor) -> Line:
    """Share of the values of both views of phase 1 that differ by more than rounding."""
    loops = pair(asked, pixels, labels, thumbnails(pixels))
    made = []
    for loop in loops:
        rows, images = first_batch(loop)
        made.append(torch.cat(loop.make_views(images, rows, 0)).cpu())
    share = float(((made[0] - made[1]).abs() > LIMITS["views"]).double().mean())
    largest = float((made[0] - made[1]).abs().max())
    return check("views", share, 1e-4, f"{{:.2g}} of the values differ by more than {LIMITS['views']:g}; {largest:.2g}")


def one_step(asked: Asked, pixels: Tensor, labels: Tensor, method: str, targets: Tensor | None) -> Line:
    """Loss and gradient of one step of a method."""
    losses, gradients = [], []
    for loop in pair(asked, pixels, labels, targets, method):
        rows, images = first_batch(loop)
        loop.start_step()
        losses.append(float(loop.add_gradients(rows, images, 0)))
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in loop.trainable if p.grad is not None]).double())
    cosine = float(F.cosine_similarity(*gradients, dim=0))
    apart = abs(losses[0] - losses[1]) / max(1e-9, abs(losses[0]))
    name = f"step of {method.partition('=')[2]}" if targets is None else "step of phase 1"
    line = check(name, cosine, LIMITS["gradient"], "cosine of the gradients {:.6f}", least=True)
    return {**line, "text": f"{line['text']}; losses {apart:.1g} apart", "ok": line["ok"] and apart <= LIMITS["loss"]}


def no_wait(asked: Asked, name: str, full: str, *more: str) -> Line:
    """Fifty steps in which torch refuses every wait of the host; without a GPU one step on tensors without values."""
    words = ["runtime.read_every_steps=100000", f"learner.width={asked.size(64, 4)}", "batch_size=64", *more]
    words += [] if name == "phase 1" else [f"method={name}"]
    if asked.device == "cpu":
        config = replace(compose([*COMMON, *words]), batch_size=8)
        phase = 1 if name == "phase 1" else 2
        waits = count_step(config, phase, Sizes(16, 24, 4)).waits
        return found(full, f"{len(waits)} waits on tensors without values", ok=not waits, limit="0")
    pixels, labels = material.images(asked.bench, 64 * (STILL_STEPS + 10))
    targets = thumbnails(pixels) if name == "phase 1" else None
    loop = trainer(pixels, labels, targets, *words, f"runtime.device={asked.device}")
    batches = iter(loop.draw_batches(0))
    take_steps(loop, batches, FIRST_STEPS)
    if GRAPH in more and (loop.graph is None or loop.graph.is_off or not loop.graph.captured):
        return found(full, "the step could not be recorded as a graph; log.txt says why", ok=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_steps(loop, batches, STILL_STEPS)
    except RuntimeError as error:
        return found(full, str(error).splitlines()[0][:160], ok=False, limit="0 waits")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found(full, f"none in {STILL_STEPS} steps", ok=True, limit="0 waits")


def take_steps(loop: Trainer, batches: Iterator[tuple[Tensor, Tensor]], count: int) -> None:
    """Some steps as `Trainer.fit` takes them, without its reads."""
    for rows, images in islice(batches, count):
        loop.start_step()
        loop.ask_switch()
        loss = loop.add_gradients(rows, images, 0)
        loop.update()
        loop.keep(loss)


def features(asked: Asked, prior: str, pixels: Tensor, labels: Tensor) -> Line:
    """Features in fp32, relative to their size."""
    data, made = material.stats(pixels), []
    for kind in ("cpu", asked.device):
        width = [f"prior.width={asked.size(64, 4)}"] if prior == "random" else []
        config = compose(["dataset=fake", f"prior={prior}", *width, f"runtime.device={kind}", "runtime.block_size=32"])
        network, device = fitted_prior(config, Split(pixels, labels), data)
        made.append(torch.cat(list(run_prior(network, pixels, data.size, 32, device, "check"))))
    apart = float((made[0] - made[1]).norm() / made[0].norm())
    return check(f"features of {prior}", apart, LIMITS["features"], "relative difference {:.2g}")


def transported(asked: Asked, name: str, kind: Callable[..., Any]) -> Line:
    """Targets, relative to their deviation."""
    x, _ = material.features(asked.size(20_000, 400), asked.size(256, 48))
    made = []
    for kind_of_device in ("cpu", "cuda"):
        mapping = kind(32) if kind is Whitening else kind(32, 0) if kind is RandomProjection else kind()
        with on(asked, kind_of_device) as device:
            mapping.fit(block.to(device) for block in x.half().split(2048))
            made.append(mapping.rounded(x.half().to(device)).cpu())
    apart = float(((made[0] - made[1]).abs().max(0).values / made[0].std(0).clamp(min=1e-6)).max())
    return check(f"targets by {name}", apart, LIMITS["targets"], "largest difference {:.2g} deviations")


def probed(asked: Asked, protocol: str) -> Line:
    """Top-1 on both, and what it took."""
    how = replace(compose([]).probe, rela_epochs=asked.size(5, 1), sgd_grid_epochs=asked.size(5, 1), few_shot_draws=2)
    n, width = asked.size(5000, 300), asked.size(128, 24)
    task = Task(*material.features(n, width, 0), *material.features(n // 5, width, 1))
    top1 = []
    for kind in ("cpu", "cuda"):
        with on(asked, kind) as device:
            top1.append(float(accuracy(FITTERS[protocol](task.to(device), how)[0], task.test_labels)["top1"]))
    text = f"top-1 {top1[0]:.4f} and {top1[1]:.4f}, {{:.4f}} apart"
    return check(f"probe {protocol}", abs(top1[0] - top1[1]), LIMITS["top1"], text)


# ---------------------------------------------------------------------------------------------------------------- speed


def steps(asked: Asked) -> Iterator[tuple[str, Callable[[], Line]]]:
    """Phase 1 against the paper's loop, BYOL against lightly's, at both batch sizes; the rate of a large product."""
    yield "product", lambda: product(asked)
    for batch in (8,) if asked.small else (128, 512):
        for name in ("phase 1", "byol"):
            for way, words in ways(asked).items():
                full = f"{name}{way}, batch {batch}"
                yield (
                    full,
                    lambda name=name, batch=batch, full=full, words=words: row(
                        asked, full, raced(asked, name, batch, *words)
                    ),
                )


def ways(asked: Asked) -> dict[str, tuple[str, ...]]:
    """A step operator by operator, and as a CUDA graph, which a CPU does not have."""
    return {"": (EAGER,)} if asked.small else {"": (EAGER,), AS_A_GRAPH: (GRAPH,)}


def raced(asked: Asked, name: str, batch: int, *words: str) -> BenchRow:
    """A race of `rela bench step`; a graph runs alone, since the peers have been timed by then."""
    target = step.GPU_TARGETS.get(batch) if name == "phase 1" else None
    bench = replace(asked.bench, peers=("byol",)) if GRAPH in words else asked.bench
    return step.race_of(name, bench, batch, target, asked.device, *words)


def row(asked: Asked, name: str, score: BenchRow) -> Line:
    """A row of a benchmark."""
    against = f"; {score.ratio.median:.2f} times {score.peer}'s" if score.ratio else ""
    text = f"{score.value.median:,.0f} {score.unit} ({score.value.min:,.0f} to {score.value.max:,.0f}){against}"
    aim = {"limit": f"at least {score.target:,.0f}", "ok": score.reached} if score.target and not asked.small else {}
    return found(name, f"{text}; {score.accuracy}; {score.work}", is_speed=True, **aim, row=score.facts())


def product(asked: Asked) -> Line:
    """The rate of a large bf16 product, against which a step's rate can be held."""
    side, rounds = asked.size(8192, 64), asked.size(20, 1)
    x = torch.randn(side, side, device=asked.device, dtype=torch.bfloat16)
    x @ x
    synchronize(x.device)
    started = time.perf_counter()
    for _ in range(rounds):
        y = x @ x
    synchronize(y.device)
    rate = 2 * side**3 * rounds / (time.perf_counter() - started) / 1e12
    name = device_name(asked.device)
    peak = next((f"; its data sheet says {peak}" for kind, peak in PEAKS.items() if kind in name), "")
    return found("product", f"{rate:.0f} TFLOP/s, bf16, {side} x {side}, {name}{peak}", is_speed=True, tflops=rate)


def resnet50(asked: Asked) -> Iterator[tuple[str, Callable[[], Line]]]:
    """ResNet-50 on images of 224 px."""
    for name in ("phase 1", "byol"):
        yield name, lambda name=name: large_step(asked, name)


def large_step(asked: Asked, name: str) -> Line:
    """Images a second, both views of each."""
    batch, side = asked.size(256, 4), asked.size(224, 32)
    pixels = torch.randint(0, 256, (4 * batch, 3, side, side), dtype=torch.uint8)
    targets = torch.randn(len(pixels), 512) if name == "phase 1" else None
    words = ["learner=resnet50", "learner.stem=imagenet", f"batch_size={batch}", f"runtime.device={asked.device}"]
    words += [f"learner.width={asked.size(64, 4)}", EAGER]
    loop = trainer(pixels, torch.arange(len(pixels)) % 10, targets, *words)
    flops = step.flops_of_step(loop, pixels[:batch])
    for epoch in range(2):
        take_steps(loop, iter(loop.draw_batches(epoch)), 4)
    synchronize(loop.device)
    started, rounds = time.perf_counter(), asked.size(6, 1)
    for epoch in range(2, 2 + rounds):
        take_steps(loop, iter(loop.draw_batches(epoch)), 4)
    synchronize(loop.device)
    rate = rounds * len(pixels) / (time.perf_counter() - started)
    text = f"{rate:,.0f} images/s, {rate * flops / batch / 1e12:.3g} TFLOP/s, batch {batch}, {side} px, two views"
    return found(name, f"{text}, {device_name(asked.device)}", is_speed=True, images_per_second=rate)


def extraction(asked: Asked) -> Iterator[tuple[str, Callable[[], Line]]]:
    """CLIP's ViT-B/16 with random weights."""
    yield "clip_vitb16", lambda: row(asked, "clip_vitb16", next(extract.on_gpu(asked.bench, asked.device)))


def after(asked: Asked) -> Iterator[tuple[str, Callable[[], Line]]]:
    """What comes after training, at the size of CIFAR-10."""
    sizes = asked.size(50_000, 400), asked.size(10_000, 100), asked.size(512, 32)
    for protocol in ("rela", "lbfgs", "knn", "sgd_grid"):
        yield protocol, lambda protocol=protocol: timed_probe(asked, protocol, *sizes)
    yield "whitening", lambda: timed_whitening(asked)


def timed_probe(asked: Asked, protocol: str, n: int, queries: int, width: int) -> Line:
    """A protocol as it is by default."""
    how = compose([]).probe
    if asked.small:
        how = replace(how, rela_epochs=1, sgd_grid_epochs=1)
    task = Task(*material.features(n, width, 0), *material.features(queries, width, 1)).to(torch.device(asked.device))
    started = time.perf_counter()
    top1 = accuracy(FITTERS[protocol](task, how)[0], task.test_labels)["top1"]
    seconds = time.perf_counter() - started
    return found(protocol, f"{seconds:.2f} s, top-1 {top1:.4f}, {n:,} x {width}", is_speed=True, seconds=seconds)


def timed_whitening(asked: Asked) -> Line:
    """Fit and map, from the host's memory to the host's memory."""
    n, width = asked.size(100_000, 400), asked.size(1024, 32)
    x, device = material.features(n, width)[0].half(), torch.device(asked.device)
    started, mapping = time.perf_counter(), Whitening(width // 2)
    mapping.fit(block.to(device) for block in x.split(8192))
    for block in x.split(8192):
        mapping.rounded(block.to(device)).half().cpu()
    seconds = time.perf_counter() - started
    return found("whitening", f"{seconds:.2f} s, {n:,} x {width} to {width // 2}", is_speed=True, seconds=seconds)


PARTS: dict[str, Part] = {
    "sanity": sanity,
    "step": steps,
    "resnet50": resnet50,
    "extract": extraction,
    "after": after,
}


def main() -> int:
    """Everything of a part that is not to be skipped; what fails is a line too."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("part", choices=PARTS)
    given.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    given.add_argument("--small", action="store_true")
    given.add_argument("--skip", default="")
    args = given.parse_args()
    asked = Asked(args.device, args.small, frozenset(args.skip.split(",")))
    for name, work in PARTS[args.part](asked):
        if name in asked.skip:
            continue
        try:
            line = work()
        except Exception as error:
            line = {"name": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
