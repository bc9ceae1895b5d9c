"""Stage 1: the prior's features of every image, one clean view, in eval mode; row i is sample i.

It may take hours, so one that was stopped goes on behind its last whole block; borders are fixed, so the features are
the same bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rela_cli.config.runtime import Runtime
from rela_cli.config.schema import Config
from rela_cli.data.batches.boxes import cut, draw_boxes
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import Images, centre, in_blocks, in_numbered_blocks, side_of
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError
from rela_cli.machine.device import count_flops
from rela_cli.machine.progress import Progress
from rela_cli.priors.base import NetworkPrior, Prior
from rela_cli.priors.cells import Cells
from rela_cli.priors.fitting import fitted_prior
from rela_cli.store.blocks import KeptWriter
from rela_cli.store.disk import ensure_room
from rela_cli.store.files import Facts, size_of

FLOAT16_BYTES = 2  # bytes of a feature


def extract(config: Config, splits: dict[str, Split], data: ImageStats, folder: Path | None, grid: int = 0) -> Facts:
    """Features of each split as <split>.safetensors; facts with the cost of the train split.

    Stored as fp16 where that can hold them. The other splits are for evaluation only: their seconds are counted apart.
    Blocks that an earlier process left in `folder` are used, and their seconds count. Ranks without `folder`
    compute their share of the blocks and write nothing. With `grid` it is the prior's map, its cells in a row.
    """
    started = time.perf_counter()
    prior, device = fitted_prior(config, splits["train"], data, grid)
    if folder:
        total = FLOAT16_BYTES * prior.feature_dim * sum(len(split.images) for split in splits.values())
        ensure_room(folder, total - size_of(folder))
    runtime = config.runtime
    facts = facts_of(prior, runtime)
    for name, split in splits.items():
        given = (prior, split.images, data.size, runtime.block_size, device, name, runtime.extract_precision)
        path = folder and folder / f"{name}.safetensors"
        seconds = write_blocks(partial(run_prior, *given), path, len(split.images), runtime, device, started)
        facts["seconds" if name == "train" else f"seconds_{name}"] = seconds
        started = time.perf_counter()
    images = splits["train"].images
    facts["flops"] = flops_per_image(prior, centre(images[:1], data.size).to(device)) * len(images)
    return facts


def facts_of(prior: Prior, runtime: Runtime) -> Facts:
    """What a manifest says of the prior."""
    network = prior.prior if isinstance(prior, Cells) else prior
    return {
        "feature_dim": prior.feature_dim,
        "precision": runtime.extract_precision,
        "preprocessing": asdict(network.preprocess) if isinstance(network, NetworkPrior) else None,
        **(prior.facts if isinstance(prior, Cells) else {}),
    }


def extract_views(
    config: Config, train: Split, data: ImageStats, flip: bool, folder: Path | None, grid: int = 0
) -> Facts:
    """Features of `extract.views` light views of each train image, and boxes.safetensors, which says what these are.

    Row i of train.safetensors is sample i, its K views side by side: (N, K * feature_dim). Blocks are kept as those of
    the clean view are. facts, grid: as `extract` has them.
    """
    started = time.perf_counter()
    prior, device = fitted_prior(config, train, data, grid)
    images, runtime, count = train.images, config.runtime, config.extract.views
    boxes = draw_boxes(config.matching.view, flip, side_of(images), torch.arange(len(images)), count)
    if folder:
        ensure_room(folder, FLOAT16_BYTES * count * prior.feature_dim * len(images) - size_of(folder))
        save_file({"boxes": boxes}, folder / "boxes.safetensors")
    look = partial(look_at_views, prior, images, boxes, data.size, runtime, device)
    seconds = write_blocks(look, folder and folder / "train.safetensors", len(images), runtime, device, started)
    flops = flops_per_image(prior, centre(images[:1], data.size).to(device))
    return {**facts_of(prior, runtime), "views": count, "seconds": seconds, "flops": count * flops * len(images)}


def look_at_views(
    prior: Prior, images: Images, boxes: Tensor, size: int, runtime: Runtime, device: torch.device, first: int
) -> Iterator[Tensor]:
    """(N, 3, H, W) uint8 and boxes (N, K, 5) -> (N, K * feature_dim) float32, by blocks from `first` on."""
    count, places = boxes.shape[1], boxes.to(device)

    def look(block: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([prior(cut(block, places[rows, number], size)) for number in range(count)], dim=1)

    found = in_numbered_blocks(look, images, runtime.block_size, device, first)
    blocks = checked(found, count * prior.feature_dim, "train views", runtime.extract_precision, first)
    return shown(blocks, f"extract {count} views", len(images), runtime.block_size, first)


def write_blocks(
    blocks: Callable[[int], Iterator[Tensor]],
    path: Path | None,
    count: int,
    runtime: Runtime,
    device: torch.device,
    started: float,
) -> float:
    """Write a split's file, from where an earlier process has left it, which is said; the seconds that all of it took.

    Ranks without a path compute their share of the blocks.
    """
    if path is None:
        deque(blocks(ranks.agree(0)), maxlen=0)
        return 0.0
    circumstances = {"device": device.type, "threads": torch.get_num_threads()}
    with KeptWriter(path, "features", count, {"block_size": runtime.block_size}, circumstances) as features:
        features.at = started
        if features.blocks:
            total = -(-count // runtime.block_size)
            print(f"  extract {path.stem}: resumed at block {features.blocks} of {total}", flush=True)
        for block in blocks(ranks.agree(features.blocks)):
            features.add(block)
    return features.seconds


def run_prior(
    prior: Prior,
    images: Images,
    size: int,
    block_size: int,
    device: torch.device,
    title: str,
    precision: str = "fp32",
    first: int = 0,
) -> Iterator[Tensor]:
    """(N, 3, H, W) uint8, of which the middle `size` is shown -> (N, feature_dim) float32, by blocks from `first` on.

    Raises:
        RelaError: when the prior gives NaN or Inf, or something else than one vector of `feature_dim` an image.
    """
    blocks = in_blocks(lambda x: prior(centre(x, size)), images, block_size, device, first)
    checked_blocks = checked(blocks, prior.feature_dim, title, precision, first)
    return shown(checked_blocks, f"extract {title}", len(images), block_size, first)


def shown(blocks: Iterator[Tensor], title: str, count: int, block_size: int, first: int) -> Iterator[Tensor]:
    """The blocks from `first` on, with a line that shows how many of `count` images are done."""
    with Progress(title, count) as progress:
        for number, block in enumerate(blocks, first + 1):
            yield block
            progress.show(min(number * block_size, count))


def checked(blocks: Iterator[Tensor], width: int, title: str, precision: str, first: int) -> Iterator[Tensor]:
    """Blocks of finite numbers, `width` an image."""
    hint = ": runtime.extract_precision=bf16 or fp32 holds larger numbers" if precision == "fp16" else ""
    for number, block in enumerate(blocks, first):
        if block.shape[1:] != (width,):
            raise RelaError(f"the prior gave {tuple(block.shape)} for a block of images, not (B, {width})")
        if not block.isfinite().all():
            raise RelaError(f"the prior gave NaN or Inf for an image of {title}, block {number}{hint}")
        yield block


def flops_per_image(prior: Prior, image: Tensor) -> int:
    """FLOPs of one forward of one image."""
    with torch.no_grad():
        return count_flops(lambda: prior(image))
