"""Features to whitened targets, from file to file: ours in a stream, the paper's with everything in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results, measured_row
from rela_cli.commands.bench.memory import peak_of
from rela_cli.commands.bench.paper import whitened
from rela_cli.commands.bench.timing import Contestant, spread
from rela_cli.stages.transport import ROWS_AT_A_TIME, write_targets
from rela_cli.store.row_file import RowFile, RowFileWriter
from rela_cli.transports.pca import Whitening

WIDTH, DIM = 1024, 512
SKLEARN_SHARE = 8  # scikit-learn is timed on an eighth of the rows: it takes a minute and more for all
SKLEARN_TIMED = f"IncrementalPCA timed on 1/{SKLEARN_SHARE} of the rows"


def run(bench: Bench) -> Iterator[BenchRow]:
    """Time in one process, memory in processes of their own, on an eighth of the rows and on all."""
    n = bench.size(400_000, SKLEARN_SHARE * DIM)
    large, small = (write_features(bench.folder / f"features-{count}", count) for count in (n, n // SKLEARN_SHARE))

    def contestant(name: str, way: Callable[[Path, Path], None], path: Path, **more: Any) -> Contestant:
        target = bench.folder / name
        return Contestant(name, partial(way, path, target), warm_up=partial(way, small, target), **more)

    contestants = [
        contestant("ours", ours, large, is_ours=True),
        contestant("paper", paper, large),
        contestant("scikit-learn", scikit_learn, small, share=1 / SKLEARN_SHARE),
    ]
    work = f"{n:,} x {WIDTH:,} to {DIM} whitened targets"
    comparisons = [
        Comparison("ours", "paper", work, 1.5, "wall"),
        Comparison("ours", "scikit-learn", f"{work}; {SKLEARN_TIMED}", 7.0, "wall"),
    ]
    yield from bench.scores("transport", contestants, comparisons, partial(outcome, bench.folder))
    if bench.wants("transport", "paper") and bench.sees_memory("transport"):
        yield memory(work, small, large)


def write_features(path: Path, n: int) -> Path:
    """fp16 features as stage extract leaves them."""
    with RowFileWriter(path, "features", n) as rows:
        for number, start in enumerate(range(0, n, ROWS_AT_A_TIME)):
            rows.add(material.features(min(ROWS_AT_A_TIME, n - start), WIDTH, number)[0])
    return path


def ours(source: str | Path, target: str | Path) -> None:
    """Stage transport: a stream to fit, a stream to map."""
    rows, mapping = RowFile(Path(source), "features"), Whitening(DIM)
    mapping.fit(rows.blocks(ROWS_AT_A_TIME))
    write_targets(mapping, rows, Path(target))


def paper(source: str | Path, target: str | Path) -> None:
    """All of it in memory."""
    features = load_file(source)["features"].float()
    save_file({"targets": whitened(features, DIM).half()}, target)


def scikit_learn(source: str | Path, target: str | Path) -> None:
    """IncrementalPCA over the same blocks."""
    from sklearn.decomposition import IncrementalPCA

    rows, pca = RowFile(Path(source), "features"), IncrementalPCA(DIM, whiten=True)
    for block in rows.blocks(ROWS_AT_A_TIME):
        if len(block) >= DIM:  # it takes no smaller ones
            pca.partial_fit(block.float().numpy())
    mapped = [pca.transform(block.float().numpy()) for block in rows.blocks(ROWS_AT_A_TIME)]
    save_file({"targets": torch.from_numpy(np.concatenate(mapped)).half()}, target)


def outcome(folder: Path, results: Results, peer: str) -> str:
    """How alike the targets are, whatever the axes' signs and order: cosine of their Gram matrices."""
    grams = [gram(folder / name) for name in ("ours", peer)]
    return f"cosine of the Gram matrices of 512 targets, ours and theirs: {cosine(*grams):.6f}"


def gram(path: Path) -> Tensor:
    """(512, 512)"""
    rows = next(RowFile(path, "targets").blocks(512)).double()
    return rows @ rows.T


def cosine(one: Tensor, other: Tensor) -> float:
    """The cosine of two matrices, as long vectors."""
    return float((one * other).sum() / (one.norm() * other.norm()))


def memory(work: str, small: Path, large: Path) -> BenchRow:
    """Growth of peak anonymous memory from an eighth of the rows to all of them."""
    mine, all_mine, theirs, all_theirs = (
        peak_of(f"transport:{way}", str(path), str(small.with_name("out")))
        for way in ("ours", "paper")
        for path in (small, large)
    )
    text = f"{mine:.3f} to {all_mine:.3f} GB; the paper's way {theirs:.2f} to {all_theirs:.2f} GB"
    ratio, growth = spread([all_mine / all_theirs]), spread([all_mine / mine])
    return measured_row("transport", f"{work}: memory, 8 times the rows", "paper", ratio, growth, 1.05, "x", text)
