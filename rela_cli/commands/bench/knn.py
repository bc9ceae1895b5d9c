"""Nearest neighbours by cosine: ours in blocks, scikit-learn's brute force on the same unit vectors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results, measured_row
from rela_cli.commands.bench.memory import peak_of
from rela_cli.commands.bench.timing import Contestant, spread
from rela_cli.evaluation.measures import knn_logits

K, T = 200, 0.1
WIDTH = 512


def run(bench: Bench) -> Iterator[BenchRow]:
    """Time in this process, and memory in a process for each way."""
    sizes = bench.size(50_000, 1000), bench.size(10_000, 100)
    bank, labels, queries, truth = task(*sizes)
    work = f"{sizes[1]:,} queries among {sizes[0]:,} x {WIDTH}, k {K}"
    contestants = [
        Contestant("ours", partial(ours, bank, labels, queries), is_ours=True),
        Contestant("scikit-learn", partial(brute_force, bank, labels, queries)),
    ]

    def outcome(results: Results, peer: str) -> str:
        guesses = [results[who] for who in ("ours", peer)]
        top1 = [f"{(guess == truth).double().mean():.4f}" for guess in guesses]
        same = (guesses[0] == guesses[1]).double().mean()
        return f"top-1 {top1[0]} against {top1[1]}; the same answer for {same:.2%} of the queries"

    comparisons = [Comparison("ours", "scikit-learn", work, 1.0, "wall")]
    yield from bench.scores("knn", contestants, comparisons, outcome)
    if bench.wants("knn", "scikit-learn") and bench.sees_memory("knn"):
        yield memory(work, *map(str, sizes))


def memory(work: str, *sizes: str) -> BenchRow:
    """The peak memory of both ways; the features themselves count in both."""
    held, mine, theirs = (peak_of(f"knn:{name}", *sizes) for name in ("hold", "hold_ours", "hold_brute_force"))
    outcome = f"scikit-learn's {theirs:.2f} GB; the features themselves {held:.2f} GB, which are counted in both"
    ratio, work = spread([mine / theirs]), f"{work}: memory"
    return measured_row("knn", work, "scikit-learn", ratio, spread([mine]), 1.0, "GB", outcome)


def task(n: int, queries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bank and labels, queries and theirs."""
    return (*material.features(n, WIDTH, 0), *material.features(queries, WIDTH, 1))


def ours(bank: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """(Q,) classes."""
    return knn_logits(bank, labels, queries, K, T, material.CLASSES).argmax(1)


def brute_force(bank: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """scikit-learn's vote. Euclidean distance on unit vectors is its fast path."""
    from sklearn.neighbors import NearestNeighbors

    unit = [F.normalize(x, dim=1).numpy() for x in (bank, queries)]
    distance, nearest = (
        NearestNeighbors(n_neighbors=min(K, len(bank)), algorithm="brute").fit(unit[0]).kneighbors(unit[1])
    )
    weights = np.exp((1 - distance**2 / 2) / T)
    votes = np.zeros((len(nearest), material.CLASSES))
    np.add.at(votes, (np.arange(len(nearest))[:, None], labels.numpy()[nearest]), weights)
    return torch.from_numpy(votes.argmax(1))


def hold(n: str, queries: str) -> object:
    """The features alone, for the process that watches memory."""
    return task(int(n), int(queries))


def hold_ours(n: str, queries: str) -> object:
    """Features and our vote."""
    return ours(*task(int(n), int(queries))[:3])


def hold_brute_force(n: str, queries: str) -> object:
    """Features and scikit-learn's vote."""
    return brute_force(*task(int(n), int(queries))[:3])
