"""A folder of JPEGs to arrays that stay: the first start decodes, the second one maps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results
from rela_cli.commands.bench.timing import Contestant
from rela_cli.data.batches.cache import read_split, write_images
from rela_cli.store import entries, integrity


def run(bench: Bench) -> Iterator[BenchRow]:
    """By the wall clock: decoding by threads is part of the point."""
    n = bench.size(10_000, 60)
    root, cache = tree(bench, n), bench.folder / "cache"
    contestants = [
        Contestant("ours", partial(start_of_a_run, root, cache, afresh=True), is_ours=True),
        Contestant("second start", partial(start_of_a_run, root, cache), is_ours=True),
        Contestant("torchvision-v1", partial(image_folder, root)),
        Contestant("first-start", partial(start_of_a_run, root, bench.folder / "other", afresh=True)),
    ]
    work = f"{n:,} JPEGs of 32 px"
    comparisons = [
        Comparison("ours", "torchvision-v1", f"{work} to the resident cache", 2.5, "wall"),
        Comparison("second start", "first-start", f"{work}: second start", 1.0, "wall", "most", "s"),
    ]
    yield from bench.scores("ingest", contestants, comparisons, outcome)


def outcome(results: Results, peer: str) -> str:
    """Whether pixels agree, bit for bit."""
    ours = results["ours" if peer == "torchvision-v1" else "second start"]
    return "the same pixels, all of them" if torch.equal(ours, results[peer]) else "OTHER PIXELS"


def tree(bench: Bench, n: int) -> Path:
    """`n` JPEGs in class folders: links to those of --data, or written here."""
    root = bench.folder / "images"
    if not bench.data:
        material.write_images(root / "train", *material.images(bench, n), ".jpg")
        return root
    folder = material.folder(bench.data, limit=n)
    for row in folder.choose("train")[0].tolist():
        source = Path(str(folder.encoded("train", row))).absolute()
        place = root / "train" / source.parent.name / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)
    return root


def start_of_a_run(root: Path, cache: Path, afresh: bool = False) -> Tensor:
    """What a run does before it has its images: list the folder, then make the entry or check it, and map it."""
    if afresh:
        shutil.rmtree(cache, ignore_errors=True)
    integrity._hashes.clear()  # another process would have none, and would read and hash what it maps
    dataset = material.folder(root, cache=cache)
    entry = entries.Entry("images", dataset.identity, cache)
    entry.make(lambda place: write_images(dataset, place))
    split = read_split(entry, "train", dataset)
    assert split is not None and isinstance(split.images, Tensor)
    return split.images


def image_folder(root: Path) -> Tensor:
    """torchvision's ImageFolder, by Pillow, one file after the other: (N, 3, S, S) uint8."""
    from torchvision.datasets import ImageFolder

    pixels = [np.asarray(image) for image, _ in ImageFolder(str(root / "train"))]
    return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2))
