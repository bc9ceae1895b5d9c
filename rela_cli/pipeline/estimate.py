"""What a run will cost, before it runs: time, operations, memory, disk.

Rates are measured, not guessed: a trainer takes a few steps here, on random images, views and update included, and the
prior looks at a few images. Operations and memory are counted (`footprint.py`). A finished run of the same learner and
method on this machine knows better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rela_cli.config.runtime import GLOBAL
from rela_cli.config.schema import Config
from rela_cli.errors import RelaError
from rela_cli.machine import memory
from rela_cli.pipeline.artifacts import Artifacts
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.to_do import TRANSPORT, is_made
from rela_cli.terminal import as_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rela_cli.data.batches.cache import ImageStats
    from rela_cli.pipeline.footprint import Footprint
    from rela_cli.pipeline.terms import Taken
    from rela_cli.training.goals import Goals
    from rela_cli.training.live import LiveTargets
    from rela_cli.training.trainer import Trainer

TRIAL_FLOPS = 10e9  # of a trial step: a fraction of a second on a core
LEAST_IMAGES = 2  # images of a trial step: a batch norm needs as many
TRIAL_SECONDS = 0.5  # seconds that a trial lasts once it is warm, unless a single step takes longer


@dataclass(frozen=True)
class StepTiming:
    """Seconds of one call of a few: the middle, the quickest by itself, the slowest with all that ran beside it."""

    seconds: float
    least: float
    most: float


@dataclass(frozen=True)
class CostRates:
    """What a learner and its method cost on this machine."""

    seconds: float  # a training step of the method itself, an image
    matching: float  # the same of a step of matching
    flops: float  # of the method's step, an image
    parameters: int  # trained ones
    spread: tuple[float, float] = (1.0, 1.0)  # of the time that it may take at the least and at the most, as measured

    def training(self, images: float, switch: str) -> float:
        """Seconds for so many images: those of the method, unless matching never ends."""
        return images * (self.matching if switch == "never" else self.seconds)

    def range(self, images: float, switch: str) -> tuple[float, float]:
        """The least and the most seconds for so many images; where a switch decides, matching may take any of them."""
        both = (self.training(images, switch), self.training(images, "never" if switch else ""))
        return min(both) * self.spread[0], max(both) * self.spread[1]


@dataclass(frozen=True)
class Cost:
    """What a run will cost."""

    steps: int
    samples: int
    flops: float
    seconds: float
    memory_bytes: float
    disk_bytes: float


@dataclass(frozen=True)
class Speed:
    """A prior: seconds an image, and before the first one."""

    seconds: float
    before: float
    spread: tuple[float, float] = (1.0, 1.0)  # as of CostRates


class Estimator:
    """Costs of runs; trials are made once for each learner, method and image size."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.rates: dict[str, CostRates] = {}
        self.prints: dict[str, Footprint] = {}
        self.extracts: dict[str, Speed] = {}
        self.passed: set[str] = set()  # prior passes that an earlier run of the same plan makes

    def cost(self, run: Run) -> Cost:
        """A run that is not there yet, its prior pass included unless that is cached."""
        config, n = run.config, run.lengths
        rate = self.rate(run)
        switch = "never" if config.is_live else "" if config.is_plain else config.switch.name  # live: at the most
        train = rate.training(n.samples_seen, switch)
        probe = 3 * (n.train_samples + run.dataset.count("test")) * rate.seconds / 6  # two networks, forward alone
        return Cost(
            n.total_steps,
            n.samples_seen,
            n.samples_seen * rate.flops,
            train + probe + self.extraction(run) + (n.total_steps and self.fixed(config)),
            self.footprint(run).train().total(),
            self.disk(run, rate),
        )

    def fixed(self, config: Config) -> float:
        """Starting up and the paper's own probe, seconds."""
        return 6.0 + (4.0 if "rela" in config.probe.protocols else 0.0)

    def disk(self, run: Run, rate: CostRates) -> float:
        """Bytes: two networks, and features and targets in fp16 unless they are there."""
        images = run.lengths.train_samples + run.dataset.count("test") + views_to_see(run)
        priors = () if run.config.is_plain or run.targets.manifest else run.config.prior.singles
        times = 3 if len(priors) > 1 else 2  # an ensemble's targets are stored side by side as well
        widths = times * sum(prior.card.features or 512 for prior in priors)
        tokens = None if is_made(run, TRANSPORT) else self.footprint(run).tokens
        return 8.0 * rate.parameters + 2.0 * images * widths + (tokens.bytes if tokens else 0)

    def rate(self, run: Run) -> CostRates:
        key = timing_key(run)
        if key not in self.rates:
            self.rates[key] = trial(self.footprint(run), self.threads)
        return self.rates[key]

    def footprint(self, run: Run) -> Footprint:
        from rela_cli.pipeline import footprint

        key = timing_key(run)
        if key not in self.prints:
            self.prints[key] = footprint.of_run(run)
        return self.prints[key]

    def extraction(self, run: Run) -> float:
        """Seconds of the prior pass, none where it is cached or another run of the plan makes it."""
        return sum(self.extraction_by(one, run) for one in run.artifacts.singles) if run.config.extracts else 0.0

    def extraction_by(self, one: Artifacts, run: Run) -> float:
        """Seconds of the pass of one prior."""
        images = self.images_to_see(one, run)
        if not images:
            return 0.0
        from rela_cli.pipeline.footprint import Footprint, of_run

        key = f"{one.prior.identity} {run.shown_size}"
        if key not in self.extracts:
            of = of_run(run)
            self.extracts[key] = prior_speed(Footprint(replace(of.config, prior=one.prior), of.shape))
        return self.extracts[key].before + images * self.extracts[key].seconds

    def images_to_see(self, one: Artifacts, run: Run) -> int:
        """Images and views that a prior still has to look at, but for those of an earlier run of the plan."""
        passes = [(one.features, run.lengths.train_samples + run.dataset.count("test"))]
        passes += [(one.views, views_to_see(run))] if run.config.has_views else []
        passes += [(one.tokens, views_to_see(run) or run.lengths.train_samples)] if run.config.has_tokens else []
        new = {entry.hash: n for entry, n in passes if not entry.manifest and entry.hash not in self.passed}
        self.passed |= new.keys()
        return sum(new.values())


def views_to_see(run: Run) -> int:
    """Light views of train images that the prior looks at, whether it has done so or not."""
    return run.config.extract.views * run.lengths.train_samples if run.config.has_views else 0


def timing_key(run: Run) -> str:
    """Runs with equal keys take equal time per step and equal memory, so one trial serves them all."""
    c = run.config
    live = c.prior.identity if c.is_live or c.has_tokens else ""
    tokens = f"{c.extract} {c.transport.identity}" if c.has_tokens else ""
    return f"{c.learner.identity} {c.method.identity} {c.batch_size} {c.accumulate} {run.shown_size} {live}{tokens}"


# ------------------------------------------------------------------------------------------------------------- trials


def trial(of: Footprint, threads: int | None) -> CostRates:
    """A few steps of a trainer on random images, of the method's own and of matching.

    Raises:
        RelaError: not even the smallest step has room in the memory that is free.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    n, side = images_for(of.step(2), of.images_a_pass, "a trial step"), of.shape.side
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    trainer = trial_trainer(of, images)
    rows, shown = torch.arange(n, device=trainer.device), images.to(trainer.device)
    found = {}
    for phase in of.phases:
        trainer.start_phase(phase)
        found[phase] = timed(partial(one_step, trainer, rows, shown), trainer.device)
    parameters = sum(p.numel() for p in trainer.trainable)
    matching = found.get(1, found[2]).seconds / n
    return CostRates(found[2].seconds / n, matching, of.flops, parameters, relative_range(found.values()))


def trial_trainer(of: Footprint, images: Tensor) -> Trainer:
    """A trainer of these images, (n, 3, S, S) uint8, as one batch."""
    import torch

    from rela_cli.config.lengths import Lengths
    from rela_cli.data.batches.cache import ImageStats, Split
    from rela_cli.training.trainer import Trainer

    n, shape, stats = len(images), of.shape, ImageStats.grey(of.shape.size)
    config = replace(of.config, batch_size=n, accumulate=1, runtime=replace(of.config.runtime, norm=GLOBAL))
    labels = torch.arange(n) % shape.classes if shape.classes else None
    if labels is not None:
        labels[-1] = (shape.classes or 1) - 1  # the trainer takes the number of classes from the largest
    goals = trial_goals(of, images, stats)
    trainer = Trainer(config, Lengths(n, n, 1, 1, n), Split(images, labels), goals, stats)
    trainer.trainee.train()
    return trainer


def trial_goals(of: Footprint, images: Tensor, stats: ImageStats) -> Goals | None:
    """Random targets of random images; live ones where the config says so."""
    import torch

    from rela_cli.training.goals import Goals

    if not of.targets:
        return None
    targets, live = torch.randn(len(images), of.matched), trial_prior(of, images, stats) if of.config.is_live else None
    return Goals(targets, live, tokens=of.tokens.blank(len(images), of.shape.size) if of.tokens else None)


def trial_prior(of: Footprint, images: Tensor, stats: ImageStats) -> LiveTargets:
    """For matching.targets=live: the prior, whose weights do not matter for its speed, without a map behind it."""
    import torch

    from rela_cli.data.batches.cache import Split
    from rela_cli.data.batches.loader import centre
    from rela_cli.pipeline.footprint import weightless
    from rela_cli.priors.fitting import fitted_prior
    from rela_cli.training.live import LiveTargets
    from rela_cli.transports.identity import Identity

    config = replace(of.config, prior=weightless(of.config.prior))
    prior, _ = fitted_prior(config, Split(centre(images, stats.size), None), stats)
    return LiveTargets(prior, Identity(), of.matched, stats, torch.float16)


def one_step(trainer: Trainer, rows: Tensor, images: Tensor) -> None:
    """One update, as `Trainer.fit` does it."""
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.loss_of(trainer.make_views(images, rows, 0), rows, 0).backward()
    trainer.update()


def images_for(taken: Taken, images: int, what: str) -> int:
    """Images of a trial: few enough for its time and for the memory that is free.

    Raises:
        RelaError: too few are.
    """
    free = memory.free()
    by_memory = images if free is None else int(free / 2 / (taken.peak / images))
    if by_memory < LEAST_IMAGES:
        needed = as_size(round(LEAST_IMAGES * taken.peak / images))
        raise RelaError(
            f"{what} of {LEAST_IMAGES} images would need {needed} of memory, and {as_size(free or 0)} are free here. "
            "With train_rate= and prior_rate=, images a second, `rela plan` tries nothing out"
        )
    by_time = int(TRIAL_FLOPS / (taken.flops / images)) if taken.flops else images
    return max(LEAST_IMAGES, min(images, by_time, by_memory))


def prior_speed(of: Footprint) -> Speed:
    """How fast the prior is, tried on random images; its weights do not matter for that.

    Raises:
        RelaError: not even the smallest step has room in the memory that is free.
    """
    import torch

    from rela_cli.data.batches.cache import ImageStats, Split
    from rela_cli.pipeline.footprint import weightless
    from rela_cli.priors.fitting import fitted_prior

    size = of.shape.size
    block = of.outlook.block if of.outlook else of.look(of.prior, torch.uint8)  # which says what is missing
    n = images_for(block, of.config.runtime.block_size, "a trial of the prior")
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    started = time.perf_counter()
    config = replace(of.config, prior=weightless(of.config.prior))
    prior, device = fitted_prior(config, Split(images, None), ImageStats.grey(size))
    before = time.perf_counter() - started
    with torch.inference_mode():
        found = timed(lambda: prior(images.to(device)), device)
        return Speed(found.seconds / n, before, relative_range([found]))


def relative_range(found: Iterable[StepTiming]) -> tuple[float, float]:
    """The least and the most of some timings, as shares of their middles."""
    shares = [(one.least / one.seconds, one.most / one.seconds) for one in found]
    return min(least for least, _ in shares), max(most for _, most in shares)


def timed(work: Callable[[], Any], device: torch.device) -> StepTiming:
    """Seconds of one call. On a CPU the middle is of its own time, so that other work beside it does not count."""
    import torch

    from rela_cli.machine.device import synchronize

    on_cpu = device.type == "cpu"
    clock, share = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)

    def one_call() -> tuple[float, float]:
        synchronize(device)
        started, seen = clock(), time.perf_counter()
        work()
        synchronize(device)
        return (clock() - started) / share, time.perf_counter() - seen

    found = [one_call()]  # which warms up, and is enough where it takes long
    if found[0][0] <= 2 * TRIAL_SECONDS:
        begun, found = time.perf_counter(), [one_call()]
        while time.perf_counter() - begun < TRIAL_SECONDS:
            found.append(one_call())
    own, wall = zip(*found, strict=True)
    middle = sorted(own)[len(own) // 2]
    return StepTiming(middle, min(own), max(middle, *wall))
