"""A frozen network on a dataset that it was not trained on: its features from the store, its numbers beside the run.

Nothing is trained but the probes, and nothing of the run changes. The network is a prior of a config like any other:
`rela_run` for the backbone of a run, so its features on a dataset are entries of the cache. Beside it, unless
probe.baselines=false, stands the learner of that run before any training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.config.schema import PROTOCOLS, Config, Part
from rela_cli.data.base import Dataset
from rela_cli.errors import ConfigError
from rela_cli.machine.signals import stoppable
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.screen import say
from rela_cli.store import beside
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts, provenance, read_json, section
from rela_cli.weights import locate, run_folder, seen

if TYPE_CHECKING:
    from torch import Tensor

    from rela_cli.evaluation.protocols import Task
    from rela_cli.stages.segment import Segmenting

FINETUNE, SEGMENT = "finetune", "segment"
HEADS = ("linear", "fcn")  # of segment, each with a number of its own
RANKED = 2000  # train images whose features are ranked
VIEWED, VIEWS = 500, 10  # train images whose views are looked at, and how many of each LiDAR takes
UNTRAINED_LEARNER = "rela_cli.priors.run.UntrainedLearner"
MEASURES = {"top-1": "top1", "mIoU": "miou"}  # how numbers are called, and their keys


@dataclass(frozen=True)
class Judged:
    """Whose numbers these are: the folder that gets them, a name for people, and which network of it."""

    folder: Path
    title: str
    network: str


@dataclass(frozen=True)
class Side:
    """A network and where its numbers stand: under `probe`, or under `untrained`."""

    key: str
    run: Run  # whose prior is the network


class Judging:
    """The numbers of one network on one dataset. `config` has the network as its prior."""

    def __init__(self, config: Config, judged: Judged, command: str) -> None:
        self.config, self.judged, self.command = config, judged, command
        self.run = Run(config)
        self.tasks: dict[str, Task] = {}
        self.ranks: dict[str, Facts] = {}  # by side
        self.dense: tuple[str, Segmenting] | None = None  # of the side that was looked at last
        self.dataset: Dataset = self.run.dataset

    @cached_property
    def sides(self) -> list[Side]:
        """The network, and the same before any training where there is a run."""
        own = Side("probe", self.run)
        if not self.config.prior.options.get("run"):
            return [own]
        return [own, Side("untrained", Run(replace(self.config, prior=untrained(self.config))))]

    def wanted(self) -> Iterator[tuple[Side, str]]:
        """Every number that is asked for: finetune without the same from scratch would say little."""
        for side in self.sides:
            for protocol in each_number(self.config.probe.protocols):
                if side.key == "probe" or self.config.probe.baselines or protocol == FINETUNE:
                    yield side, protocol

    @cached_property
    def path(self) -> Path:
        """The file beside the run."""
        of = {"images": self.run.images.hash, "size": self.config.prior.options.get("image_size")}
        return beside.path_of(self.judged.folder, self.run.called["dataset"], of)

    def entry(self, side: Side, protocol: str) -> Entry:
        """The number of a protocol in the cache."""
        if protocol == FINETUNE:
            network = {"network": locate.identity(side.run.config.prior), "seed": self.config.seed}
            return side.run.baseline("finetuned", protocol, **network, flip=self.dataset.flip)
        if protocol.startswith(SEGMENT):
            background = getattr(self.dataset, "background", None)
            of = {"network": locate.identity(side.run.config.prior), "background": background}
            return side.run.baseline("segmented", protocol, **of)
        return side.run.baseline("frozen", protocol, features=side.run.features.hash)

    def missing(self) -> Iterator[tuple[Side, str]]:
        """What the file beside the run lacks, or has under other settings."""
        found = read_json(self.path) or {}
        for side, protocol in self.wanted():
            number = section(section(found, side.key), self.key(protocol))
            if number.get("entry") != self.entry(side, protocol).hash:
                yield side, protocol

    def key(self, protocol: str) -> str:
        """The name of a number: the protocol, of finetune with its share of labels, and the network if not online."""
        share = f"-{100 * self.config.probe.label_share:g}%" if protocol == FINETUNE else ""
        return self.run.probe_key(protocol + share)

    # ---------------------------------------------------------------------------------------------------- work

    def judge(self) -> bool:
        """Measure what is missing and write it beside the run; whether there was anything to do.

        Raises:
            ConfigError: the dataset has no labels to judge by.
        """
        self.check()
        todo = list(self.missing())
        self.show_plan(todo)
        if not todo:
            self.show(read_json(self.path) or {})
            return False
        with stoppable():
            fresh = [(side, protocol, self.number(side, protocol)) for side, protocol in todo]
            found = beside.change(self.path, lambda facts: self.changed(facts, fresh))
        self.show(found)
        say(f"  file  {os.path.relpath(self.path)}")
        return True

    def check(self) -> None:
        """Raises what `judge` says."""
        protocols = self.config.probe.protocols
        if SEGMENT in protocols and not self.dataset.has_masks:
            raise ConfigError(
                f"segment needs a mask for each image, and dataset={self.config.dataset.name} has none: say "
                f"dataset=segmentation dataset.root=FOLDER (images/ and masks/ in it), or dataset=voc"
            )
        if not self.run.can_probe and {*protocols} != {SEGMENT}:
            raise ConfigError(
                f"dataset={self.config.dataset.name} has no labels to judge {self.judged.title} by: "
                f"{self.dataset.why_unprobed}"
            )
        if FINETUNE in protocols and not self.config.prior.options.get("run"):
            raise ConfigError(
                f"finetune judges the learner of a run, beside itself from scratch: `rela probe RUN`, or one of the "
                f"protocols {', '.join(PROTOCOLS)} for {self.judged.title}"
            )
        seen.check(self.config.prior)

    def number(self, side: Side, protocol: str) -> Facts:
        """A protocol's number, from the cache or made now."""
        entry = self.entry(side, protocol)
        if protocol == FINETUNE:
            entry.make(lambda folder: self.finetuned(side, folder), goes_on=True)
        elif protocol.startswith(SEGMENT):
            entry.make(lambda _: self.segmented(side, protocol))
        else:
            entry.make(lambda _: self.measured(side, protocol))
        manifest = entry.manifest or {}
        return {**manifest["number"], "settings": entry.spec["settings"], "entry": entry.hash}

    def measured(self, side: Side, protocol: str) -> Facts:
        """Features, then the protocol."""
        from rela_cli.stages.probe import probes

        if side.key not in self.tasks:
            self.tasks[side.key] = self.task(side)
            self.ranks[side.key] = ranks_of(side.run, self.tasks[side.key].train)
        number = probes(self.tasks[side.key], [protocol], self.config.probe)[protocol]
        return {"number": {**number, "network": self.name(side, protocol)}}

    def finetuned(self, side: Side, folder: Path) -> Facts:
        """All weights trained; `folder` has what an earlier process has done of it."""
        from rela_cli.pipeline.pipeline import Pipeline
        from rela_cli.stages.finetune import finetune

        Pipeline(side.run, self.command).make_images()
        say(f"  finetune  {self.name(side, FINETUNE)}")
        number = finetune(side.run.config, side.run.images, self.dataset, folder)
        return {"number": {**number, "network": self.name(side, FINETUNE)}}

    def segmented(self, side: Side, protocol: str) -> Facts:
        """A head on the frozen feature map."""
        from rela_cli.pipeline.pipeline import Pipeline
        from rela_cli.stages.segment import Segmenting

        Pipeline(side.run, self.command).make_images()
        if self.dense is None or self.dense[0] != side.key:
            self.dense = (side.key, Segmenting(side.run.config, side.run.images, self.dataset))
        number = self.dense[1].number(protocol.removeprefix(f"{SEGMENT}-"))
        return {"number": {**number, "network": self.name(side, protocol)}}

    def name(self, side: Side, protocol: str) -> str:
        """What the network of a side is called beside its number."""
        if side.key == "probe":
            return self.judged.network
        return "from scratch" if protocol == FINETUNE else "untrained"

    def task(self, side: Side) -> Task:
        """The network's features of the dataset, from the cache or made now."""
        from rela_cli.pipeline.pipeline import Pipeline
        from rela_cli.stages.probe import features_task

        pipeline = Pipeline(side.run, self.command)
        pipeline.check_memory("extract")
        pipeline.make_targets("extract")
        return features_task(side.run.features, side.run.images, side.run.config.runtime)

    def changed(self, facts: Facts, fresh: list[tuple[Side, str, Facts]]) -> Facts:
        """The file's content with some numbers more."""
        for side, protocol, number in fresh:
            facts[side.key] = {**section(facts, side.key), self.key(protocol): number}
        manifest = self.run.features.manifest or {}
        probes = [n for side in self.sides for n in section(facts, side.key).values()]
        extract = sum(seconds for key, seconds in manifest.items() if key.startswith("seconds"))
        return {
            **self.facts(),
            **{side.key: section(facts, side.key) for side in self.sides},
            "ranks": {**section(facts, "ranks"), **self.ranks},
            "seconds": {"extract": extract, "probe": sum(n.get("seconds", 0.0) for n in probes)},
            "flops": {"extract": manifest.get("flops", 0), "probe": sum(n.get("flops", 0) for n in probes)},
            "command": self.command,
            **provenance(),
        }

    def facts(self) -> Facts:
        """What was judged, and on what."""
        return {
            "judged": self.judged.title,
            "dataset": self.run.called["dataset"],
            "images": self.run.images.hash,
            "features": self.run.features.hash,
            "image_size": self.run.shown_size,
            "fed_size": fed_size(self.config),
            "train_samples": self.run.lengths.train_samples,
            "test_samples": self.dataset.count("test"),
            "classes": len(self.dataset.classes or ()),
            **seen.label_facts(self.config.prior, self.dataset),
        }

    # -------------------------------------------------------------------------------------------------- screen

    def show_plan(self, todo: list[tuple[Side, str]]) -> None:
        """Whom, on what, at which size; and what is to be done."""
        say(f"{self.judged.title}, {self.judged.network}, on {self.run.called['dataset']}")
        size, fed = self.run.shown_size, fed_size(self.config)
        if fed and size and fed != size:
            say(f"  images    {size} px, resized to the {fed} px that the network is fed")
        if labels := seen.note(self.config.prior, self.dataset):
            say(f"  labels    {labels}")
        words = ", ".join(f"{self.key(protocol)} ({self.name(side, protocol)})" for side, protocol in todo)
        say(f"  to do     {words}" if todo else "  nothing to do")

    def show(self, found: Facts) -> None:
        """Each number by protocol, with the untrained learner's beside it."""
        for line in result_lines(found):
            say(f"  {line}")


def fed_size(config: Config) -> int | None:
    """Pixels a side of what the network of a run is fed; None where the prior itself knows."""
    size = config.prior.options.get("image_size")
    if size or not config.prior.options.get("run"):
        return size
    return int(run_folder.run_facts(run_folder.run_folder(config.prior))["image_size"])


def untrained(config: Config) -> Part:
    """The learner of the run behind a config's prior, before any training and fed in the same way."""
    folder = run_folder.run_folder(config.prior)
    facts, tree = run_folder.run_facts(folder), run_folder.run_config(folder)
    options = {
        "learner": tree["learner"],
        "seed": tree["seed"],
        "built_at": facts["image_size"],
        "image_size": fed_size(config),
        "mean": facts["mean"],
        "std": facts["std"],
    }
    return Part("untrained", UNTRAINED_LEARNER, options)


def ranks_of(run: Run, features: Tensor) -> Facts:
    """How many directions the features of some train images really use: RankMe, the same without their mean, LiDAR."""
    from rela_cli.evaluation.measures import effective_rank, lidar, rankme

    some = features[:: max(1, len(features) // RANKED)][:RANKED]
    ranks = {"rankme": rankme(some), "effective_rank": effective_rank(some), "images": len(some)}
    if not run.config.prior.options.get("run"):  # of a run alone: a large prior would look for minutes
        return ranks
    views = features_of_views(run)
    return {**ranks, "lidar": lidar(views), "lidar_images": len(views), "lidar_views": views.shape[1]}


def features_of_views(run: Run, count: int = VIEWS) -> Tensor:
    """(N, count, D) features of views of the first N train images, as the run's phase 1 draws them by default."""
    import torch

    from rela_cli.data.batches.cache import read_split, read_stats
    from rela_cli.data.batches.views import Augment
    from rela_cli.priors.fitting import fitted_prior
    from rela_cli.stages.extract import run_prior

    split, data = read_split(run.images, "train", run.dataset), read_stats(run.images)
    assert split is not None
    prior, device = fitted_prior(run.config, split, data)
    images, rows = split.images[:VIEWED], torch.arange(min(VIEWED, len(split.images)))
    view, block = run.config.matching.view, run.config.runtime.block_size
    found = []
    for number in range(count):  # a view at a time: all of them at once may be gigabytes
        draw = Augment(view, data.size, torch.zeros(3), torch.ones(3), 0, number, run.dataset.flip)
        pixels = (draw(images, rows, 0) * 255).round().clamp(0, 255).to(torch.uint8)
        found.append(torch.cat(list(run_prior(prior, pixels, data.size, block, device, "views"))))
    return torch.stack(found, dim=1)


def each_number(protocols: Sequence[str]) -> Iterator[str]:
    """The protocols, segment as one for each of its heads."""
    for protocol in protocols:
        yield from [f"{SEGMENT}-{head}" for head in HEADS] if protocol == SEGMENT else [protocol]


def measure(number: Any) -> tuple[str, float | None]:
    """What a number is called, and its value; None where there is none."""
    found = {name: number.get(key) for name, key in MEASURES.items()} if isinstance(number, dict) else {}
    return next(((name, value) for name, value in found.items() if isinstance(value, float)), ("", None))


def dense_words(number: Facts) -> str:
    """The mean IoU without the background, and pixel accuracy, where a number has them."""
    names = {"miou_without_background": "without background", "pixel_accuracy": "pixel accuracy"}
    words = [f"{name} {100 * number[key]:.1f}" for key, name in names.items() if isinstance(number.get(key), float)]
    return f"  ({', '.join(words)})" if words else ""


def result_lines(found: Facts) -> Iterator[str]:
    """The numbers of a file beside a run, a line each."""
    for key, number in section(found, "probe").items():
        name, value = measure(number)
        if value is not None:
            beside = section(section(found, "untrained"), key)
            other = measure(beside)[1]
            compared = f"  {beside.get('network')} {100 * other:.1f}" if other is not None else ""
            yield f"{name} {100 * value:5.1f} %  {key} ({number.get('network', '?')}){compared}{dense_words(number)}"
    for key, ranks in section(found, "ranks").items():
        if isinstance(ranks, dict) and isinstance(ranks.get("rankme"), float):
            whose = "" if key == "probe" else f" ({key})"
            lidar = f", LiDAR {ranks['lidar']:.1f}" if isinstance(ranks.get("lidar"), float) else ""
            yield f"RankMe {ranks['rankme']:.1f}, effective rank {ranks['effective_rank']:.1f}{lidar}{whose}"
