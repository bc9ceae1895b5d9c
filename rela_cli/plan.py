"""What a run will cost, before it runs: time, operations, memory, disk.

Measured, not guessed: the learner takes a few small steps here, on random images, and the prior looks at a few of
them. Numbers are good to a factor of two; a finished run of the same learner and method on this machine is better.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rela_cli.artifacts import read_json
from rela_cli.config import Config
from rela_cli.runs import Run

TRIAL = 16  # images in a trial step
PATIENCE = 1.0  # seconds of a step beyond which one is enough
REPEATS = 2  # timed steps, after one to warm up


@dataclass(frozen=True)
class Rate:
    """What a learner and its method cost on this machine."""

    seconds: float  # a training step, an image
    flops: float  # the same
    held_bytes: float  # activations kept for the backward pass, an image
    parameters: int  # trained ones


@dataclass(frozen=True)
class Cost:
    """What a run will cost."""

    steps: int
    samples: int
    flops: float
    seconds: float
    memory_bytes: float
    disk_bytes: float


class Estimator:
    """Costs of runs; trials are made once for each learner, method and image size."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.rates: dict[str, Rate] = {}
        self.extracts: dict[str, float] = {}
        self.passed: set[str] = set()  # prior passes that an earlier run of the same plan makes

    def cost(self, run: Run) -> Cost:
        """A run that is not there yet, its prior pass included unless that is cached."""
        config, n = run.config, run.lengths
        rate = self.rate(run)
        train = n.samples_seen * rate.seconds
        probe = 3 * (n.train_samples + run.dataset.count("test")) * rate.seconds / 6  # two networks, forward alone
        return Cost(
            n.total_steps,
            n.samples_seen,
            n.samples_seen * rate.flops,
            train + probe + self.extraction(run) + (n.total_steps and self.fixed(config)),
            config.batch_size * rate.held_bytes + 16 * rate.parameters,
            self.disk(run, rate),
        )

    def fixed(self, config: Config) -> float:
        """Starting up and the paper's own probe, seconds."""
        return 6.0 + (4.0 if "rela" in config.probe.protocols else 0.0)

    def disk(self, run: Run, rate: Rate) -> float:
        """Bytes: two networks, and features and targets in fp16 unless they are there."""
        images = run.lengths.train_samples + run.dataset.count("test")
        widths = 0 if run.config.is_plain or run.targets.manifest else 2 * (run.config.prior.card.features or 512)
        return 8.0 * rate.parameters + 2.0 * images * widths

    def rate(self, run: Run) -> Rate:
        key = f"{run.config.learner.identity} {run.config.method.identity} {size_of(run)}"
        if key not in self.rates:
            self.rates[key] = self.trial(run.config, size_of(run), len(run.dataset.classes or []) or None)
        return self.rates[key]

    def trial(self, config: Config, size: int, classes: int | None) -> Rate:
        """A few steps of the method on random images."""
        import torch

        from rela_cli.runtime import count_flops, pick_device
        from rela_cli.stages.train import Trainee, memory_format

        device = pick_device(config.runtime)
        if self.threads:
            torch.set_num_threads(self.threads)
        trainee = Trainee(config, size, None, classes).to(device).train()
        trainee.to(memory_format=memory_format(trainee, device, size))
        views = [
            torch.randn(TRIAL, 3, max(8, round(v.size_scale * size)), max(8, round(v.size_scale * size)), device=device)
            for v in trainee.method.views
        ]
        labels = torch.randint(classes or 2, (TRIAL,), device=device) if trainee.method.uses_labels else None
        work: Callable[[], Any] = lambda: trainee(views, None, labels).backward()  # noqa: E731
        flops, held = count_flops(work), held_bytes(lambda: trainee(views, None, labels))
        seconds = timed(work, device)
        parameters = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
        return Rate(seconds / TRIAL, flops / TRIAL, held / TRIAL, parameters)

    def extraction(self, run: Run) -> float:
        """Seconds of the prior pass, none where it is cached or another run of the plan makes it."""
        if run.config.is_plain or run.features.manifest or run.features.hash in self.passed:
            return 0.0
        self.passed.add(run.features.hash)
        images = run.lengths.train_samples + run.dataset.count("test")
        key = f"{run.config.prior.identity} {size_of(run)}"
        if key not in self.extracts:
            self.extracts[key] = prior_seconds(run.config, size_of(run))
        return images * self.extracts[key]


def prior_seconds(config: Config, size: int) -> float:
    """Seconds an image that the prior takes, tried on random ones."""
    import torch

    from rela_cli.data.cache import ImageStats, Split
    from rela_cli.stages.extract import fitted_prior

    images = torch.randint(0, 256, (TRIAL, 3, size, size), dtype=torch.uint8)
    half = torch.full((3,), 0.5)
    prior, device = fitted_prior(config, Split(images, None), ImageStats(half, half / 2, size))
    with torch.inference_mode():
        return timed(lambda: prior(images.to(device)), device) / TRIAL


def timed(work: Callable[[], Any], device: Any) -> float:
    """Seconds of one call, the best of a few. On a CPU its own time, so that other work beside it does not count."""
    import torch

    from rela_cli.runtime import wait

    on_cpu = device.type == "cpu"
    clock, share = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    best = float("inf")
    for _ in range(1 + REPEATS):  # the first one warms up
        wait(device)
        started = clock()
        work()
        wait(device)
        best = min(best, clock() - started)
        if best / share > PATIENCE:
            break
    return best / share


def held_bytes(forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, each storage once."""
    import torch

    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    del kept
    return sum(storages.values())


def size_of(run: Run) -> int:
    """Pixels a side that the learner is shown."""
    stats = read_json(run.images.folder / "manifest.json") or {}
    options = run.config.dataset.options
    return int(run.dataset.image_size or stats.get("size") or options.get("image_size") or options.get("size") or 32)
