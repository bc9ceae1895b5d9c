"""A linear classifier on frozen features: ours to convergence, the paper's for its 100 epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results
from rela_cli.commands.bench.paper import probe_epochs
from rela_cli.commands.bench.timing import Contestant
from rela_cli.config.compose import compose
from rela_cli.config.schema import Probe
from rela_cli.evaluation.protocols import FITTERS, Task
from rela_cli.priors.patches import Patches

EPOCHS = 100
TIMED = 2  # of them
WIDTH = 512
OUR_SETTINGS = {
    "rough": (0.01, 1e-4),
    "given": (0.01, None),
    "chosen": (None, None),
}  # penalty, tolerance: None is ours


def run(bench: Bench) -> Iterator[BenchRow]:
    """The lbfgs protocol with its penalty given, as the paper's loop is given its rate, and with its choice of one.

    The target is for the first to scikit-learn's tolerance: the loop does not converge at all.
    """
    task = make_task(bench)
    epochs = bench.size(EPOCHS, 2)
    contestants = [
        Contestant(name, partial(lbfgs, task, how), warm_up=partial(lbfgs, tenth(task), how), is_ours=True)
        for name, how in our_probes().items()
    ]
    loop = partial(probe_epochs, task.train, task.train_labels, task.classes, TIMED)
    contestants.append(Contestant("paper", loop, TIMED / EPOCHS))

    @cache
    def theirs() -> float:
        linear = probe_epochs(task.train, task.train_labels, task.classes, epochs)
        return top1(linear(task.test).detach(), task)

    def outcome(results: Results, peer: str) -> str:
        ours = " and ".join(f"{results[name]:.4f} ({name})" for name in OUR_SETTINGS)
        return f"top-1 {ours} against {theirs():.4f} after {epochs} epochs"

    work = f"linear, {len(task.train):,} x {WIDTH}, penalty {{}}; the paper's timed for {TIMED} of its {EPOCHS} epochs"
    comparisons = [
        Comparison("rough", "paper", work.format("given, to scikit-learn's tolerance"), 40.0, "wall"),
        Comparison("given", "paper", work.format("given, converged"), None, "wall"),
        Comparison("chosen", "paper", work.format("chosen among five on a held-out tenth, converged"), None, "wall"),
    ]
    yield from bench.scores("probe", contestants, comparisons, outcome)


def make_task(bench: Bench) -> Task:
    """Features of ten classes; with --data those of its images by the prior `patches`."""
    sizes = bench.size(50_000, 400), bench.size(10_000, 100)
    if not bench.data:
        return Task(*material.features(sizes[0], WIDTH, 0), *material.features(sizes[1], WIDTH, 1))
    folder = material.folder(bench.data, limit=sizes[0])
    train, test = (material.decoded(folder, split) for split in ("train", "test"))
    prior = Patches(WIDTH // 8, 6, 2, 0, material.stats(train[0]))
    prior.fit(train[0])
    features = [torch.cat([prior(block) for block in pixels.split(500)]) for pixels, _ in (train, test)]
    return Task(features[0], train[1], features[1], test[1])


def our_probes() -> dict[str, Probe]:
    """Ours, composed beforehand: reading configs is no part of a probe."""
    common = compose([]).probe
    return {name: replace(common, lbfgs_penalty=p, lbfgs_tolerance=t) for name, (p, t) in OUR_SETTINGS.items()}


def lbfgs(task: Task, how: Probe) -> float:
    """Top-1 by our protocol."""
    return top1(FITTERS["lbfgs"](task, how)[0], task)


def tenth(task: Task) -> Task:
    """A tenth of the training samples."""
    return replace(task, train=task.train[::10], train_labels=task.train_labels[::10])


def top1(logits: Tensor, task: Task) -> float:
    """Share of the test samples that are right."""
    return float((logits.argmax(1) == task.test_labels).double().mean())
