"""Stage 1: the prior's features of every image, one clean view, in eval mode; row i is sample i.

It may take hours, so one that was stopped goes on behind its last whole block; borders are fixed, so the features are
the same bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rela_cli.config.schema import Config, Runtime
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.data.batches.loader import Images, centre, in_blocks
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError
from rela_cli.machine.device import count_flops
from rela_cli.machine.progress import Progress
from rela_cli.priors.base import NetworkPrior, Prior
from rela_cli.priors.fitting import fitted_prior
from rela_cli.store.blocks import KeptWriter
from rela_cli.store.disk import ensure_room
from rela_cli.store.files import Facts, size_of

FLOAT16_BYTES = 2  # bytes of a feature


def extract(config: Config, splits: dict[str, Split], data: ImageStats, folder: Path | None) -> Facts:
    """Features of each split as <split>.safetensors; facts with the cost of the train split.

    Stored as fp16 where that can hold them. The other splits are for evaluation only: their seconds are counted apart.
    Blocks that an earlier process left in `folder` are gone on with, and their seconds count. Ranks without `folder`
    compute their share of the blocks and write nothing.
    """
    started = time.perf_counter()
    prior, device = fitted_prior(config, splits["train"], data)
    if folder:
        total = FLOAT16_BYTES * prior.feature_dim * sum(len(split.images) for split in splits.values())
        ensure_room(folder, total - size_of(folder))
    runtime = config.runtime
    facts: Facts = {"feature_dim": prior.feature_dim, "precision": runtime.extract_precision}
    for name, split in splits.items():
        blocks = partial(run_prior, prior, split.images, data.size, runtime.block_size, device, name)
        if folder is None:
            deque(blocks(runtime.extract_precision, ranks.agree(0)), maxlen=0)
            continue
        with continued_file(folder / f"{name}.safetensors", len(split.images), runtime, device) as features:
            features.at = started
            for block in blocks(runtime.extract_precision, ranks.agree(features.blocks)):
                features.add(block)
        facts["seconds" if name == "train" else f"seconds_{name}"] = features.seconds
        started = time.perf_counter()
    facts["preprocessing"] = asdict(prior.preprocess) if isinstance(prior, NetworkPrior) else None
    images = splits["train"].images
    facts["flops"] = flops_per_image(prior, centre(images[:1], data.size).to(device)) * len(images)
    return facts


@contextmanager
def continued_file(path: Path, count: int, runtime: Runtime, device: torch.device) -> Iterator[KeptWriter]:
    """A split's file, from where an earlier process has left it, which is said."""
    circumstances = {"device": device.type, "threads": torch.get_num_threads()}
    with KeptWriter(path, "features", count, {"block_size": runtime.block_size}, circumstances) as features:
        if features.blocks:
            total = -(-count // runtime.block_size)
            print(f"  extract {path.stem}: resumed at block {features.blocks} of {total}", flush=True)
        yield features


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
    hint = ": runtime.extract_precision=bf16 or fp32 holds larger numbers" if precision == "fp16" else ""
    with Progress(f"extract {title}", len(images)) as progress:
        blocks = in_blocks(lambda x: prior(centre(x, size)), images, block_size, device, first)
        for number, block in enumerate(blocks, first):
            if block.shape[1:] != (prior.feature_dim,):
                raise RelaError(
                    f"the prior gave {tuple(block.shape)} for a block of images, not (B, {prior.feature_dim})"
                )
            if not block.isfinite().all():
                raise RelaError(f"the prior gave NaN or Inf for an image of {title}, block {number}{hint}")
            yield block
            progress.show(min((number + 1) * block_size, len(images)))


def flops_per_image(prior: Prior, image: Tensor) -> int:
    """FLOPs of one forward of one image."""
    with torch.no_grad():
        return count_flops(lambda: prior(image))
