"""Stage 4: judge frozen features by named protocols; every number says which one and of which network.

Features: (N, D) float32, extracted once without augmentation. Rates and regularisers are chosen on a held-out
tenth of train, never on test. On a GPU features stay there, and probes are fitted there, where they have room.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rela_cli.config.runtime import Runtime
from rela_cli.config.schema import Config, Probe
from rela_cli.data.base import Dataset
from rela_cli.data.batches.cache import read_labels, read_split, read_stats
from rela_cli.data.batches.loader import CPU
from rela_cli.distributed import ranks
from rela_cli.errors import MissingError
from rela_cli.evaluation.protocols import FITTERS, Task, accuracy
from rela_cli.evaluation.representation import gathered, representations
from rela_cli.learners.build import build_backbone, feature_dim, load_state
from rela_cli.machine.device import count_flops, pick_device, with_room
from rela_cli.stages.ensemble import read_features
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts
from rela_cli.store.notices import warn_once
from rela_cli.store.row_file import RowFile
from rela_cli.weights.run_folder import backbone_name

COPIES = 5  # of all features, that a probe may hold at a time: as they are, standardised, nine tenths, blocks of them
ROWS_AT_A_TIME = 8192  # of a file of features
DISTRIBUTED_PROTOCOLS = ("knn",)  # protocols that several ranks compute together


def backbone_task(config: Config, run_folder: Path, images: Entry, dataset: Dataset) -> tuple[Task, Facts]:
    """The run's own backbone under `probe.network`, as a task; facts carry the cost of the forward passes.

    Raises:
        MissingError: the method has no such network.
    """
    network = config.probe.network
    path = run_folder / backbone_name(network)
    if not path.exists():
        raise MissingError(f"{config.method.name} keeps no {network} network; say probe.network=online")
    backbone = build_backbone(config.learner, config.seed, read_stats(images).size)
    load_state(backbone, load_file(path))
    return network_task(config, backbone, images, dataset)


def untrained_task(config: Config, images: Entry, dataset: Dataset) -> tuple[Task, Facts]:
    """The learner before any training."""
    backbone = build_backbone(config.learner, config.seed, read_stats(images).size)
    return network_task(config, backbone, images, dataset)


def network_task(config: Config, network: nn.Module, images: Entry, dataset: Dataset) -> tuple[Task, Facts]:
    """Representations of the images that the probe is fitted on, and of test."""
    started = time.perf_counter()
    data = read_stats(images)
    network = network.to(pick_device(config.runtime), memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = {split: part for split in probed(images) if (part := read_split(images, split, dataset))}
    place = device_of_probes(config.runtime, sum(len(part.images) for part in parts.values()), feature_dim(network))
    features = {
        split: representations(network, part.images, data, config.runtime.block_size, place)
        for split, part in parts.items()
    }
    sample = torch.zeros(1, 3, data.size, data.size, device=next(network.parameters()).device)
    with torch.no_grad():
        flops = count_flops(lambda: network.eval()(sample)) * sum(map(len, features.values()))
    return task_of(features, images), {"seconds": time.perf_counter() - started, "flops": flops}


def device_of_probes(runtime: Runtime, samples: int, width: int) -> torch.device:
    """Where probes of features (N, D) are fitted: on the run's device, unless they have no room there."""
    size = COPIES * samples * width * torch.float32.itemsize
    return with_room(pick_device(runtime), size, f"probing {samples:,} x {width:,} features")


def prior_task(targets: Entry, dim: int, images: Entry, runtime: Runtime) -> tuple[Task, Facts]:
    """The prior alone: the first `dim` components of its targets, the very ones that a learner is matched to."""
    started = time.perf_counter()
    task = stored_task(targets, "targets", images, runtime, dim)
    return task, {"seconds": time.perf_counter() - started, "flops": 0}


def features_task(features: Entry, images: Entry, runtime: Runtime) -> Task:
    """A prior's features of the images that the probe is fitted on, and of test."""
    if features.is_joined:
        found = {split: read_features(features, split) for split in probed(images)}
        place = device_of_probes(runtime, sum(map(len, found.values())), found["test"].shape[1])
        return task_of({split: rows.to(place) for split, rows in found.items()}, images)
    return stored_task(features, "features", images, runtime)


def stored_task(entry: Entry, name: str, images: Entry, runtime: Runtime, dim: int | None = None) -> Task:
    """The task of what an entry holds under a name, of its first `dim` columns or of all; read block by block."""
    files = {split: RowFile(entry.folder / f"{split}.safetensors", name) for split in probed(images)}
    width = min(file.shape[1] if dim is None else dim for file in files.values())
    place = device_of_probes(runtime, sum(map(len, files.values())), width)
    blocks = {split: (block[:, :dim] for block in file.blocks(ROWS_AT_A_TIME)) for split, file in files.items()}
    return task_of({split: gathered(blocks[split], len(file), place) for split, file in files.items()}, images)


def probed(images: Entry) -> tuple[str, str]:
    """The splits that a probe is fitted and tested on: train, unless its images have no labels and others do."""
    return ("labelled" if read_labels(images, "labelled") is not None else "train"), "test"


def task_of(features: dict[str, Tensor], images: Entry) -> Task:
    """A task from the features of two splits."""
    fitted, tested = probed(images)
    labels, truth = read_labels(images, fitted), read_labels(images, tested)
    assert labels is not None and truth is not None
    return Task(features[fitted], labels, features[tested], truth)


def probes(task: Task, protocols: Sequence[str], settings: Probe) -> dict[str, Facts]:
    """Each protocol's number. With several ranks each fits its share, and all receive all numbers."""
    found = {protocol: probe(task, protocol, settings) for protocol in protocols if protocol in DISTRIBUTED_PROTOCOLS}
    dealt = [protocol for protocol in protocols if protocol not in DISTRIBUTED_PROTOCOLS][ranks.rank() :: ranks.world()]
    for part in ranks.gather_objects({protocol: probe(task, protocol, settings) for protocol in dealt}):
        found |= part
    return {protocol: found[protocol] for protocol in protocols}


def probe(task: Task, protocol: str, settings: Probe) -> Facts:
    """One protocol on one task: top1 (and top5) in [0, 1], with the seconds it took."""
    started = time.perf_counter()
    try:
        logits, extra = FITTERS[protocol](task, settings)
    except torch.cuda.OutOfMemoryError:
        if ranks.world() > 1:  # the others would wait
            raise
        warn_once(f"{protocol}: the memory of the GPU is full, so it is fitted on the CPU")
        logits, extra = FITTERS[protocol](task.to(CPU), settings)
    return {**accuracy(logits, task.test_labels), **extra, "seconds": time.perf_counter() - started}
