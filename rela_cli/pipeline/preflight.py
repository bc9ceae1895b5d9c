"""Before work starts: are the labels and the network there, can the folders be written to, does it fit on the disk?"""

from __future__ import annotations

import os
from pathlib import Path

from rela_cli.config.lengths import components_kept
from rela_cli.config.parts import import_target
from rela_cli.config.schema import PRETRAINED, WHOLE, Config
from rela_cli.errors import ConfigError, DiskError
from rela_cli.pipeline.artifacts import Artifacts
from rela_cli.pipeline.run import Run
from rela_cli.store.disk import disk_errors, ensure_room, existing
from rela_cli.store.entries import Entry
from rela_cli.store.files import size_of

FLOAT16_BYTES = 2  # bytes of a feature or target
BOX_BYTES = 10  # that say where a view is cut


def check(run: Run, until: str) -> None:
    """Say now what would otherwise be said after hours.

    Raises:
        DiskError: a folder that cannot be written to, or fewer bytes free than are needed for sure.
    """
    folders = {run.outputs} | ({run.folder} if until in ("train", "probe") else set())
    for folder in folders:
        check_writable(folder)
    needed = needs(run, until)
    ensure_room(run.outputs / "cache", sum(needed.values()))


def check_writable(folder: Path) -> None:
    """Write, sync and remove a file where `folder` is or would be.

    Raises:
        DiskError: it cannot be done, with the reason.
    """
    there = existing(folder)
    if not there.is_dir():
        raise DiskError(f"{there} is a file, and a folder is needed; choose another place: paths.outputs=FOLDER")
    path = there / f".rela-{os.getpid()}.tmp"
    with disk_errors(path):
        try:
            path.write_bytes(b"x" * 4096)  # a disk without room takes an empty file
        finally:
            path.unlink(missing_ok=True)


def needs(run: Run, until: str) -> dict[str, int]:
    """Bytes of each artifact that is still to be made, by kind; what cannot be known yet is left out.

    The width of the features is known beforehand for published weights alone; `extract` looks again once it has
    built its prior.
    """
    if run.trained is not None and until in ("train", "probe"):
        return {}
    found = {}
    if run.images.manifest is None and (size := image_bytes(run)):
        found["images"] = size
    for one in run.artifacts.singles if run.config.extracts else ():
        width = one.prior.card.features if one.prior.options.get("weights") == PRETRAINED else None
        for kind, size in needs_of(one, run, until, width).items() if width else ():
            found[kind] = found.get(kind, 0) + size
    return found


def needs_of(one: Artifacts, run: Run, until: str, width: int) -> dict[str, int]:
    """Bytes of what one prior makes; the targets of a member of an ensemble lie in those of the ensemble, too."""
    found, kept = {}, components_kept(run.config.transport, width)
    if one.features.manifest is None:
        there = size_of(one.features.part)  # of an extraction that was interrupted
        found["features"] = max(0, FLOAT16_BYTES * width * sample_count(run) - there)
    if until != "extract" and (times := missing_count(one.targets, run.targets)):
        found["targets"] = times * FLOAT16_BYTES * kept * sample_count(run)
    return found | (needs_of_views(one, run, until, width) if run.config.has_views else {})


def needs_of_views(one: Artifacts, run: Run, until: str, width: int) -> dict[str, int]:
    """Bytes of the light views of the train images."""
    found, count = {}, run.config.extract.views * run.lengths.train_samples
    if one.views.manifest is None:
        found["views"] = max(0, (FLOAT16_BYTES * width + BOX_BYTES) * count - size_of(one.views.part))
    if until != "extract" and (times := missing_count(one.view_targets, run.view_targets)):
        size = FLOAT16_BYTES * components_kept(run.config.transport, width) + BOX_BYTES
        found["view_targets"] = times * size * count
    return found


def missing_count(*entries: Entry) -> int:
    """How many different entries are not there."""
    return sum(entry.manifest is None for entry in {entry.hash: entry for entry in entries}.values())


def sample_count(run: Run) -> int:
    """Images of all splits."""
    return sum(run.dataset.count(split) for split in run.dataset.splits)


def image_bytes(run: Run) -> int | None:
    """Decoded pixels with their labels; labels and rows alone where images stay on disk."""
    if run.dataset.on_disk:
        return 16 * sample_count(run)
    side = run.dataset.side
    return None if side is None else (3 * side**2 + 8) * sample_count(run)


def check_protocols(config: Config) -> None:
    """The protocols asked for are those of a run that is being made.

    Raises:
        ConfigError: one of them is of finished runs alone.
    """
    if whole := [protocol for protocol in config.probe.protocols if protocol in WHOLE]:
        raise ConfigError(
            f"probe.protocols has {whole[0]}, which judges finished runs: train first, and then say "
            f"`rela probe RUN probe.protocols=[{whole[0]}]`"
        )


def check_labels(run: Run) -> None:
    """A method that uses labels has some.

    Raises:
        ConfigError: the dataset has none.
    """
    if run.trained is not None or not getattr(import_target(run.config.method), "uses_labels", False):
        return
    if run.dataset.classes is None or run.dataset.labels("train") is None:
        why = run.dataset.why_unprobed or "its train images have no labels, only those that are probed with"
        raise ConfigError(
            f"method={run.config.method.name} needs labels and dataset={run.config.dataset.name} has none: "
            f"{why}. Sort the train images into one folder a class, or say method=simclr"
        )


def check_network(config: Config) -> None:
    """The network that will be probed is one that the method has.

    Raises:
        ConfigError: a target network is wanted and there is none.
    """
    from rela_cli.methods.base import Method

    if config.probe.network == "online":
        return
    if getattr(import_target(config.method), "networks", None) is Method.networks:
        raise ConfigError(
            f"method={config.method.name} has no {config.probe.network} network to probe: "
            "say probe.network=online, or a method with one (byol, dino, moco_v3)"
        )
