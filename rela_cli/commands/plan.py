"""`rela plan`: what a run will take, before it runs: steps, images, operations, bytes, memory, time.

Sizes are arithmetic, and memory is counted. Rates are tried out here, on a few random images, unless they are given;
with `--samples` the data need not be there at all, so ImageNet on eight GPUs can be planned on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rela_cli.config.arguments import PositiveNumber
from rela_cli.config.compose import Composer, compose
from rela_cli.config.overrides import CONFIG_FLAGS, CommandLine, RunParser
from rela_cli.config.schema import Config, Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.machine import memory
from rela_cli.pipeline.estimate import CostRates, Speed, prior_speed, trial
from rela_cli.pipeline.preflight import BOX_BYTES
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.screen import say
from rela_cli.pipeline.terms import DEVICE, MAPPED, Stage
from rela_cli.terminal import as_duration, as_si, as_size

if TYPE_CHECKING:
    from rela_cli.pipeline.footprint import Footprint
    from rela_cli.pipeline.tokens import MapSizes

PLAN_OPTIONS = (  # options, and what their values are called
    ("--samples", "N", "plan for so many train images; the data need not be there"),
    ("--size", "S", "pixels a side of these images, with --samples"),
    ("--train-rate", "R", "images a second that one process trains on (default: tried out here)"),
    ("--prior-rate", "R", "images a second that one process extracts (default: tried out here)"),
    ("--image-bytes", "B", "bytes of an image as it is stored"),
)
RATES_TRIED = 3  # that a fine-tuning chooses among
ASSUMED_CLASSES = 10  # where the data do not say
TEST_SHARE = 0.04  # of test images beside `samples` train images, about ImageNet's
NOTABLE = 0.1  # of a time, from which on another one is worth its words
HALF, WORD = 2, 8  # bytes of a feature, and of a row number


@dataclass(frozen=True)
class PlanSizes:
    """All that a plan says, in images, bytes, FLOPs and seconds. Rates are per process."""

    samples: int
    test_samples: int
    subset: int
    steps: int
    seen: int
    devices: int
    batch: int
    width: int  # of the prior's features; 0 without a prior
    targets: int  # components kept
    image_bytes: float
    rate: CostRates
    prior: Speed | None  # None without a prior
    switch: str
    views: int = 0  # of each train image that the prior looks at beside the clean one
    joined: int = 0  # components that an ensemble stores once more, side by side
    tokens: MapSizes | None = None  # feature maps of train images, or of their views, that the prior gives besides

    @property
    def images(self) -> int:
        return self.samples + self.test_samples

    @property
    def looks(self) -> int:
        """Images and views that the prior sees; those of feature maps once more."""
        return self.images + self.views * self.samples + (self.tokens.maps if self.tokens else 0)

    @property
    def extract_seconds(self) -> float:
        return self.prior.before + self.looks * self.prior.seconds / self.devices if self.prior else 0.0

    @property
    def train_seconds(self) -> float:
        return self.rate.training(self.seen, self.switch) / self.devices

    @property
    def range(self) -> tuple[float, float]:
        """Seconds to extract and train at the least and at the most."""
        least, most = (seconds / self.devices for seconds in self.rate.range(self.seen, self.switch))
        low, high = self.prior.spread if self.prior else (1.0, 1.0)
        return least + low * self.extract_seconds, most + high * self.extract_seconds

    @property
    def cache_bytes(self) -> float:
        """Features and targets in fp16, and row numbers with labels; where views are cut stands beside both."""
        looks, boxes = self.images + self.views * self.samples, 2 * BOX_BYTES * self.views * self.samples
        tokens = self.tokens.bytes + BOX_BYTES * self.views * self.samples if self.tokens else 0
        return HALF * looks * (self.width + self.targets + self.joined) + 2 * WORD * self.images + boxes + tokens


def main(argv: list[str]) -> int:
    """Print the plan of one run.

    Raises:
        ConfigError: a command line that is wrong.
        MissingError: the data are not here, and nobody says how many images they have.
    """
    given, line = read(argv)
    config = Composer(line).check()
    run, of = looked_at(config, given)
    tuned = tuning_of(of) if "finetune" in config.probe.protocols else None
    stages = of.stages()  # before any trial: what that leaves in memory is none of the run's
    stages += [replace(tuned.train(), name="finetune")] if tuned else []
    show(config, sizes(run, of, given))
    if tuned:
        say(f"  finetune  {tuning_words(config, tuned, rate_of(tuned, given.get('train_rate')))}")
    show_memory(stages, config.runtime.devices)
    return 0


def tuning_of(of: Footprint) -> Footprint:
    """The memory of probe.protocols=[finetune]: that of supervised training of the same network with some labels."""
    from rela_cli.pipeline.footprint import Footprint

    probe = of.config.probe
    batch = min(probe.finetune_batch_size, max(2, round(probe.label_share * of.shape.train)))
    parts = compose(["method=supervised", "prior=none", f"optimizer={probe.finetune_optimizer}"])
    config = replace(of.config, method=parts.method, prior=parts.prior, optimizer=parts.optimizer)
    config = replace(config, batch_size=batch, accumulate=1)
    return Footprint(config, replace(of.shape, classes=of.shape.classes or ASSUMED_CLASSES))


def tuning_words(config: Config, tuned: Footprint, rate: CostRates) -> str:
    """How long all trainings of a fine-tuning take, and what they compute."""
    trainings = 2 * (1 if config.probe.finetune_lr else 1 + RATES_TRIED)
    steps, batch = config.probe.finetune_steps, tuned.config.batch_size
    images = trainings * steps * batch
    time, flops = as_duration(images * rate.seconds), as_si(images * rate.flops, "FLOP")
    return f"{time}, {flops}: {trainings} trainings of {steps:,} steps of {batch}, half of them from scratch"


def looked_at(config: Config, given: Mapping[str, float]) -> tuple[Run, Footprint]:
    """The run and its memory; of imaginary data where `samples` says how many there are."""
    from rela_cli.pipeline.footprint import of_run

    try:
        run = Run(pretended(config, given) if "samples" in given else config)
        return run, of_run(run)
    except MissingError as error:
        if "samples" in given:
            raise
        raise MissingError(f"{error}; to plan without the data say --samples N --size S") from error


def parser() -> RunParser:
    """The command line of `rela plan`."""
    made = RunParser(
        "plan",
        """Says how much time, memory and disk `rela train key=value ...` would take. It runs only a few steps on random
images to learn their speed, and nothing if both rates are given.""",
        [
            "rela plan budget=0.1 dataset=image_folder dataset.root=FOLDER",
            "rela plan --samples 1281167 --size 224 experiment=imagenet1k_resnet50 runtime.devices=8 --train-rate 1500",
        ],
        (*CONFIG_FLAGS, "--multirun"),
    )
    for flag, metavar, help in PLAN_OPTIONS:
        made.add(flag, metavar=metavar, type=PositiveNumber(flag, 1e15), help=help)
    return made


def read(argv: Sequence[str]) -> tuple[dict[str, float], CommandLine]:
    """The numbers that are given for the plan itself, and the rest of the line."""
    options, line = parser().read_line(argv)
    if line.is_sweep:
        raise ConfigError("rela plan is of one run; `rela reproduce ... --dry-run` plans a table")
    given = {key: value for key, value in vars(options).items() if value is not None}
    if "size" in given and "samples" not in given:
        raise ConfigError("--size goes with --samples; the data that are there have a size (dataset.image_size=)")
    return given, line


def sizes(run: Run, of: Footprint, given: Mapping[str, float]) -> PlanSizes:
    """Everything, from the config and what is given; rates that are not given are tried out."""
    config, n = run.config, run.lengths
    return PlanSizes(
        n.train_samples,
        run.dataset.count("test"),
        n.subset_size,
        n.total_steps,
        n.samples_seen,
        config.runtime.devices,
        config.batch_size,
        of.features,
        of.targets,
        given.get("image_bytes", 3.0 * of.shape.size**2),
        rate_of(of, given.get("train_rate")),
        speed_of(of, given.get("prior_rate")) if config.extracts else None,
        "" if config.is_plain else config.switch.name,
        config.extract.views if config.has_views else 0,
        of.targets if config.prior.members else 0,
        of.tokens,
    )


def rate_of(of: Footprint, given: float | None) -> CostRates:
    """The rates of training: as given, or by trial."""
    if given:
        return CostRates(1 / given, 1 / given, of.flops, of.trained)
    import torch

    # where others are at work, threads that wait for each other are slower than one alone
    tried = {of.config.runtime.threads or torch.get_num_threads(), 1}
    return min((trial(of, threads) for threads in tried), key=lambda rate: rate.seconds)


def speed_of(of: Footprint, given: float | None) -> Speed:
    """The speed of extraction: as given, or by trial."""
    return Speed(1 / given, 0.0) if given else prior_speed(of)


def pretended(config: Config, given: Mapping[str, float]) -> Config:
    """The config with an imaginary dataset of `samples` images of side `size`, which need not exist."""
    count = round(given["samples"])
    side = round(given.get("size") or config.dataset.options.get("image_size") or 32)
    words = [f"dataset.n={count}", f"dataset.n_test={max(1, round(TEST_SHARE * count))}", f"dataset.size={side}"]
    part: Part = compose(["dataset=fake", *words]).dataset
    return replace(config, dataset=part)


def show(config: Config, plan: PlanSizes) -> None:
    """The plan, a line a thing."""
    shared = f" on each of {plan.devices} processes" if plan.devices > 1 else ""
    priors = "+".join(prior.name for prior in config.prior.singles)  # of an ensemble several
    say(f"{priors}, {config.learner.name}, {config.method.name}, budget {config.budget:g}")
    checkpoint, flops = as_si(32 * plan.rate.parameters, "B"), as_si(plan.seen * plan.rate.flops, "FLOP")
    kept = f"{as_si(plan.cache_bytes, 'B')} of features, targets and rows{of_maps(plan)}"
    an_epoch, of_all = (as_si(plan.image_bytes * images, "B") for images in (plan.subset, plan.images))
    why_none = "no prior" if config.is_plain else "the efficient dataset brings targets"
    extracted = f", {1 / plan.prior.seconds:,.0f} extracted" if plan.prior else ""
    lines = {
        "images": f"{plan.samples:,} to train on, {plan.subset:,} of them an epoch, {plan.test_samples:,} to test",
        "steps": f"{plan.steps:,} of {plan.batch}, so {plan.seen:,} images are seen",
        "extract": extract_time(plan) if plan.prior else f"nothing: {why_none}",
        "train": f"{as_duration(plan.train_seconds)}{matching_time(plan)}, {flops}",
        "range": ranged(plan),
        "rates": f"{1 / plan.rate.seconds:,.0f} images/s trained on{extracted}{shared}",
        "read": f"{an_epoch} an epoch; all is {of_all}",
        "disk": f"{kept}; {checkpoint} a checkpoint",
    }
    for name, text in lines.items():
        say(f"  {name:<10}{text}")
    say("  times suppose that processes do not wait for each other, nor for the disk")


def extract_time(plan: PlanSizes) -> str:
    """Time to extract, and what the prior looks at beside the clean images."""
    views = f", {plan.views} light views of each train image included" if plan.views else ""
    maps = f", and a second look for {plan.tokens.maps:,} feature maps" if plan.tokens else ""
    return as_duration(plan.extract_seconds) + views + maps


def of_maps(plan: PlanSizes) -> str:
    """How much of the disk feature maps take."""
    if not plan.tokens:
        return ""
    side = round(plan.tokens.cells**0.5)
    return f" ({as_si(plan.tokens.bytes, 'B')} of it feature maps of {side} x {side} cells)"


def ranged(plan: PlanSizes) -> str:
    """How sure the times are."""
    if plan.rate.spread == (1.0, 1.0):  # nothing was tried
        return "times are as sure as the rates that are given"
    least, most = map(as_duration, plan.range)
    return f"{least} to {most} in all: by the quickest step tried, and by the slowest, beside what else runs here"


def matching_time(plan: PlanSizes) -> str:
    """How long it takes where the switch never leaves matching, if that is known to differ."""
    matching, own = plan.rate.matching * plan.seen / plan.devices, plan.train_seconds
    differs = plan.prior and plan.switch != "never" and abs(matching / own - 1) > NOTABLE
    return f" ({as_duration(matching)} if matching never ends)" if differs else ""


def show_memory(stages: Sequence[Stage], devices: int) -> None:
    """The most memory that a process takes, and what each stage takes at its peak, term by term."""
    most = max(stages, key=lambda stage: stage.total())
    shared = f" for each of {devices} processes" if devices > 1 else ""
    free = memory.free()
    here = f"; {as_size(free)} are free here" if free is not None else ""
    say(f"  memory    {as_size(round(most.total()))} at the most{shared}, to {most.name}{here}")
    for stage in stages:
        mapped = f"; mapped files: {files}" if (files := stage.words(MAPPED)) else ""
        say(f"    {stage.name:<10}{as_size(round(stage.total()))}: {stage.words()}{mapped}")
    if any(stage.total(MAPPED) for stage in stages):
        say("    mapped files come on top as long as there is room; the system takes that back when it needs it")
    if devices > 1 or has_gpu():
        own = ", ".join(f"{s.name} {as_size(round(s.total(DEVICE)))}" for s in stages if s.total(DEVICE))
        say(f"    on a GPU so much of it is the GPU's own, if it computes in fp32 as here: {own}")
    if devices == 1 and has_gpu():
        say("    neither time nor memory is that of a step as one CUDA graph (runtime.step), which needs more at first")


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()
