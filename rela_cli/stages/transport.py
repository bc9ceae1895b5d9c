"""Stage 2: fit the map from features to targets, once, and keep both the map and the targets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.config.parts import instantiate
from rela_cli.config.runtime import Runtime
from rela_cli.config.schema import Config
from rela_cli.data.batches.loader import sent
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError
from rela_cli.machine.device import pick_device, with_room
from rela_cli.numerics.side_by_side import map_blocks
from rela_cli.store.files import Facts
from rela_cli.store.notices import warn
from rela_cli.store.row_file import RowFile, RowFileWriter, halved
from rela_cli.transports.base import CPU, Transport, taken_up

ROWS_AT_A_TIME = 8192  # rows at a time, so that float64 copies stay small
COPIES = 6  # of a (D, D) matrix and of a block, in float64, that a fit holds at a time
LARGEST = 1e15  # of a target: sums of squares of larger ones are infinite in 32 bits
MAPPED = 2048  # rows to map at a time: they stay in the processor's cache until they are fp16


def transport(config: Config, features_folder: Path, folder: Path | None, cells: int = 1) -> Facts:
    """Targets of each split, fp16, as <split>.safetensors, and the map as map.safetensors; fitted on train.

    Features are read, and targets written, a block at a time: memory does not grow with their number. Of several ranks
    each sees its share of the features, where there is a block for everybody; those without `folder` write nothing.
    With `cells` features are those of so many cells side by side, (N, cells * D): the map is fitted to all of them, and
    targets are (N * cells, k).
    """
    started = time.perf_counter()
    train = RowFile(features_folder / "train.safetensors", "features", cells)
    mapping: Transport = instantiate(config.transport)
    mapping.shared = ranks.world() > 1 and len(train) >= ranks.world() * ROWS_AT_A_TIME
    share = (ranks.rank(), ranks.world()) if mapping.shared else (0, 1)
    device = device_of_map(mapping, config.runtime, train.shape[1])
    mapping.fit(sent(block, device) for block in train.blocks(ROWS_AT_A_TIME, *share))
    if folder is None:
        return {}
    judge(write_targets(mapping, train, folder / "train.safetensors", device))
    facts: Facts = {"seconds": time.perf_counter() - started, "ordered": mapping.ordered, **mapping.facts()}
    facts["per_feature"] = mapping.per_feature
    facts["flops"] = fit_flops(*train.shape)
    save_file({name: value.cpu() for name, value in mapping.state().items()}, folder / "map.safetensors")
    for path in features_folder.glob("*.safetensors"):
        if path.stem not in ("train", "boxes"):
            write_targets(mapping, RowFile(path, "features"), folder / path.name, device)
    return facts


def device_of_map(mapping: Transport, runtime: Runtime, width: int, is_shared: bool = True) -> torch.device:
    """Where a transport works: on the run's device if it can, and if matrices of (D, D) and a few blocks fit there."""
    if not mapping.follows_device:
        return CPU
    size = COPIES * width * (width + ROWS_AT_A_TIME) * torch.float64.itemsize
    return with_room(pick_device(runtime), size, f"a transport of {width:,} features", is_shared)


def row_blocks(features: Tensor) -> Iterator[Tensor]:
    """Rows of (N, D), a few thousand at a time."""
    for start in range(0, len(features), ROWS_AT_A_TIME):
        yield features[start : start + ROWS_AT_A_TIME]


def judge(largest: float) -> None:
    """Say it where targets hold nothing, and refuse those that nothing can be computed with.

    Raises:
        RelaError: they are so large that their squares are infinite.
    """
    if largest == 0:
        warn("all targets are zero: the prior gives the same features for every image, so there is nothing to match")
    if largest > LARGEST:
        raise RelaError(
            f"the targets reach {largest:.2g}, and 32 bits do not hold the square of that; "
            f"transport=whitening or transport=standardize brings them to 1"
        )


def transport_views(config: Config, features_folder: Path, map_folder: Path, folder: Path | None) -> Facts:
    """Targets of light views, by the map that was fitted to the clean ones: K of them in a row, (N, K * k) fp16.

    boxes.safetensors comes along, so that this folder says what its targets are of.

    Raises:
        ConfigError: the transport cannot take up a map that was fitted before.
    """
    started = time.perf_counter()
    if folder is None:
        return {}
    features = RowFile(features_folder / "train.safetensors", "features")
    boxes = load_file(features_folder / "boxes.safetensors")
    instead = ("extract.views above 1", "extract.views=1")
    count, path = boxes["boxes"].shape[1], map_folder / "map.safetensors"
    device = device_of_map(instantiate(config.transport), config.runtime, features.shape[1] // count, is_shared=False)
    mapping = taken_up(config.transport, path, *instead, device)
    with RowFileWriter(folder / "train.safetensors", "targets", len(features)) as targets:
        for block in features.blocks(max(1, MAPPED // count)):
            mapped = mapping(sent(block.reshape(len(block) * count, -1), device)).float()
            targets.add(halved(mapped.reshape(len(block), -1)).cpu())
    save_file(boxes, folder / "boxes.safetensors")
    samples, width = features.shape
    flops = 2 * samples * width * (targets.width // count)
    return {"seconds": time.perf_counter() - started, "views": count, "dim": targets.width // count, "flops": flops}


def write_targets(mapping: Transport, features: RowFile, path: Path, device: torch.device = CPU) -> float:
    """Map all rows and store them, as fp16 where that can hold them; the largest size of a number among them."""
    largest, rows = 0.0, MAPPED if device.type == "cpu" else ROWS_AT_A_TIME
    with RowFileWriter(path, "targets", len(features)) as targets:
        for block in map_blocks(lambda x: halved(mapping.rounded(sent(x, device))).cpu(), features.blocks(rows)):
            targets.add(block)
            largest = max(largest, float(block.abs().max()))
    return largest


def fit_flops(samples: int, dim: int) -> int:
    """Covariance (2 N D^2), eigenvectors (about 9 D^3) and projection (2 N D^2)."""
    return 4 * samples * dim**2 + 9 * dim**3
