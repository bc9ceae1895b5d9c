"""Accuracy at equal processor seconds: cached targets, the same prior live at each step, lightly-train's distillation.

All see the same PNG files, train the same learner (ResNet-18 of width 8, CIFAR stem) and have the same teacher, the
prior `embedded`. The length of ours is given; each peer gets as many epochs as take it as long, start included.
lightly-train is under the AGPL, so it lives in an environment of its own (--lightly-train PYTHON), and another process
runs it: lightly_train_peer.py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

import rela_cli
from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow
from rela_cli.commands.bench.lightly_train_peer import learner
from rela_cli.commands.bench.startup import RELA, environment
from rela_cli.commands.bench.timing import Timing, clock, spread
from rela_cli.commands.reproduce.tables import RECIPE
from rela_cli.config.text import quote
from rela_cli.errors import RelaError, first_line
from rela_cli.learners.build import load_backbone

TRAIN, TEST, EPOCHS, SEEDS = 5000, 4000, 16, 3
BATCH, WIDTH, LR = 64, 8, 5e-3
LIVE, LIGHTLY = "live", "lightly-train"
TEACHER = Path(rela_cli.__file__).parent / "weights" / "embedded"

Train = Callable[[int, int], float]  # epochs, seed -> top-1 in percent


@dataclass(frozen=True)
class Outcome:
    """One training: how long, at what cost, and how good."""

    epochs: int
    took: Timing
    top1: float


def run(bench: Bench) -> Iterator[BenchRow]:
    """Ours first, then each peer for as long, seed by seed."""
    ways = {peer: train for peer, train in peers(bench).items() if bench.wants("distill", peer)}
    if not ways:
        return
    images = png_tree(bench)
    seeds = range(min(bench.rounds, SEEDS))
    ours = [trained(partial(rela, bench, images, ()), bench.size(EPOCHS, 2), seed) for seed in seeds]
    for peer, train in ways.items():
        try:
            theirs = [
                for_as_long(partial(train, images), mine.took.cpu, seed) for seed, mine in zip(seeds, ours, strict=True)
            ]
        except RelaError as error:
            bench.skip("distill", peer, first_line(error))
            continue
        yield row(peer, ours, theirs, "" if bench.data else ", made-up images, which say nothing")


def peers(bench: Bench) -> dict[str, Callable[[Path, int, int], float]]:
    """The peers that can run; why lightly-train cannot is noted."""
    found: dict[str, Callable[[Path, int, int], float]] = {
        LIVE: lambda images, epochs, seed: rela(bench, images, ("matching.targets=live",), epochs, seed)
    }
    if bench.lightly_train:
        found[LIGHTLY] = partial(lightly_train, bench)
    elif not bench.peers or LIGHTLY in bench.peers:
        bench.skip("distill", LIGHTLY, "give --lightly-train PYTHON, the python of an environment that has it")
    return found


def trained(train: Train, epochs: int, seed: int) -> Outcome:
    """One training on the clock."""
    took, top1 = clock(lambda: train(epochs, seed))
    return Outcome(epochs, took, top1)


def for_as_long(train: Train, seconds: float, seed: int) -> Outcome:
    """The training that takes about so many processor seconds, by what one epoch and three epochs take."""
    one, three = (trained(train, epochs, seed).took.cpu for epochs in (1, 3))
    return trained(train, equal_epochs(one, three, seconds), seed)


def equal_epochs(one: float, three: float, seconds: float) -> int:
    """How many epochs fit into `seconds` where one takes `one` seconds and three take `three`; at least one."""
    each = max((three - one) / 2, 1e-3)
    return max(1, round((seconds - (one - each)) / each))


def row(peer: str, ours: list[Outcome], theirs: list[Outcome], images: str = "") -> BenchRow:
    """Points of top-1 that ours is ahead, paired by seed."""
    ahead = spread(mine.top1 - other.top1 for mine, other in zip(ours, theirs, strict=True))
    work = f"top-1 by lbfgs at equal seconds, ResNet-18 of width {WIDTH}, prior embedded, n {len(ours)}{images}"
    came_out = f"{top1_text(ours)} against {top1_text(theirs)}"
    times = {"ours": mean_times(ours), "peer": mean_times(theirs)}
    return BenchRow(
        *("distill", work, peer, None, 0.0, ahead.median > 0, came_out, ahead), unit="points", seconds=times
    )


def top1_text(outcomes: list[Outcome]) -> str:
    """The mean over seeds, and how many epochs the first one had."""
    return f"{fmean(outcome.top1 for outcome in outcomes):.1f} (epochs: {outcomes[0].epochs})"


def mean_times(outcomes: list[Outcome]) -> dict[str, float]:
    """By either clock, over seeds."""
    return {by: fmean(getattr(outcome.took, by) for outcome in outcomes) for by in ("cpu", "wall")}


# ---------------------------------------------------------------------------------------------------------- the ways


def rela(bench: Bench, images: Path, words: tuple[str, ...], epochs: int, seed: int) -> float:
    """`rela train experiment=best`, in a fresh outputs folder, so that nothing comes from a cache."""
    outputs = fresh_folder(bench)
    data = ("dataset=image_folder", f"dataset.root={quote(str(images))}", "dataset.limit=null")
    here = ("runtime.threads=1", "runtime.device=cpu", f"paths.outputs={quote(str(outputs))}")
    ours = ("experiment=cifar10_mini", *RECIPE["best"], "prior=embedded", "budget=0.5", "probe.protocols=[lbfgs]")
    command(*RELA, "train", *ours, *data, *here, f"epochs={epochs}", f"seed={seed}", *words)
    result = json.loads((outputs / "runs" / "latest" / "result.json").read_text())
    return float(100 * result["probe"]["lbfgs"]["top1"])


def lightly_train(bench: Bench, images: Path, epochs: int, seed: int) -> float:
    """lightly-train's default distillation, in its own process; the learner is probed here, as ours is there."""
    out, teacher = fresh_folder(bench), bench.folder / "teacher.pt"
    torch.save(load_backbone(TEACHER).state_dict(), teacher)
    trained = json.loads((TEACHER / "manifest.json").read_text())["train"]
    request = {
        "images": str(images / "train"),
        "out": str(out),
        "teacher": str(teacher),
        "mean": trained["mean"],
        "std": trained["std"],
        "width": WIDTH,
        "batch": BATCH,
        "lr": LR,
        "epochs": epochs,
        "seed": seed,
    }
    command(str(bench.lightly_train), "-m", "rela_cli.commands.bench.lightly_train_peer", json.dumps(request))
    return probed(out, images, trained["mean"], trained["std"])


def probed(out: Path, images: Path, mean: list[float], std: list[float]) -> float:
    """Top-1 in percent of the learner that lightly-train has exported, by lbfgs."""
    network = learner(WIDTH)
    network.load_state_dict(torch.load(out / "exported_models" / "exported_last.pt", weights_only=True))
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    dataset, found = material.folder(images), {}
    for split in ("train", "test"):
        pixels, labels = material.decoded(dataset, split)
        features = rela_cli.extract(network, (pixels / 255 - shift) / scale)
        found[split] = features, labels
    (features, labels), test = found["train"], found["test"]
    return float(100 * rela_cli.probe(features, labels, protocol="lbfgs", test=test)["top1"])


def fresh_folder(bench: Bench) -> Path:
    """An empty one, so that no training finds what another has left."""
    return Path(tempfile.mkdtemp(prefix="distill-", dir=bench.folder))


def command(*words: str) -> None:
    """Run it on one thread, with this package in sight.

    Raises:
        RelaError: it failed; with the last line that it wrote.
    """
    settings = {**environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RelaError(last_line(done.stderr))


def last_line(text: str) -> str:
    """What a process said at last."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it failed without a word")


# --------------------------------------------------------------------------------------------------------- the images


def png_tree(bench: Bench) -> Path:
    """train/<class>/* and test/<class>/* of --data, or of made images, as PNG files with the pixels unchanged."""
    sizes = {"train": bench.size(TRAIN, 128), "test": bench.size(TEST, 64)}
    for split, n in sizes.items():
        pixels, labels = material.images(bench, n) if not bench.data else split_of(bench.data, split, n)
        material.write_images(bench.folder / "png" / split, pixels, labels, ".png")
    return bench.folder / "png"


def split_of(root: Path, split: str, n: int) -> tuple[Tensor, Tensor]:
    """n images of a split, in the classes' proportions."""
    return material.decoded(material.folder(root, limit=n), split)
