"""Writes an efficient dataset out of the cache: shard by shard, so that memory does not grow with the dataset.

Each file is whole or not there. converting.json lists those that are finished, so that a killed process loses no more
than the one it was at; efficient.json comes last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.commands.convert.card import card_text
from rela_cli.commands.data.packing import Encoding, Packer
from rela_cli.config.schema import Config, Part
from rela_cli.data.base import Array
from rela_cli.data.efficient.contents import Sample, has_files, samples
from rela_cli.data.efficient.folder import BEGUN, CARD, EFFICIENT_FORMAT, FACTS, IMAGES, MAP
from rela_cli.data.files.storage import LocalFolder as Place
from rela_cli.errors import RelaError
from rela_cli.machine.device import versions
from rela_cli.machine.progress import with_progress
from rela_cli.pipeline.artifacts import CLEAN, VIEWS
from rela_cli.pipeline.result import run_of
from rela_cli.pipeline.run import Run
from rela_cli.store.disk import ensure_room
from rela_cli.store.files import (
    Facts,
    check_same,
    file_sha256,
    load_json,
    provenance,
    remove_temporaries,
    section,
    write_atomic,
    write_json,
)
from rela_cli.store.integrity import file_damage
from rela_cli.store.notices import warn
from rela_cli.store.row_file import DTYPE_NAMES, RowFile
from rela_cli.store.sealed import Damaged
from rela_cli.store.versions import VERSIONS
from rela_cli.weights import seen

SAMPLE_BYTES = 8 + 32 + 8  # bytes of a sample beside its targets: row, hash, label
PACK = 1_000_000_000  # bytes of a file of images


def made_of(run: Run, images: str, shard_bytes: int) -> Facts:
    """What has to be the same for an unfinished efficient dataset to be continued."""
    of_views = {"view_targets": run.view_targets.hash} if run.config.has_views else {}
    common = {"flip": run.dataset.flip, "images": images, "shard_bytes": shard_bytes}
    return {"targets": run.targets.hash, **of_views, **common}


def finished_folder(config: Config, to: Path, images: str, shard_bytes: int) -> Facts | None:
    """The facts of a folder that is complete, as far as the sizes of its files tell.

    Raises:
        RelaError: another efficient dataset lies there.
    """
    try:
        facts = load_json(to / FACTS)[0]
    except (OSError, Damaged):
        return None
    ours = made_of(Run(config), images, shard_bytes)
    check_same(section(facts, "made_of"), ours, f"{to} holds another efficient dataset")
    whole = not any(file_damage(to / name, file, contents=False) for name, file in facts["files"].items())
    return facts if whole else None


class Writer:
    """One efficient dataset in the making; images, features and targets of the run are in the cache."""

    def __init__(self, run: Run, to: Path, images: str, shard_bytes: int) -> None:
        self.run_, self.to, self.images = run, to, images
        self.made_of = made_of(run, images, shard_bytes)
        self.shard_bytes = shard_bytes
        self.files: dict[str, Facts] = {}

    def run(self) -> Facts:
        """Write what is missing; the facts of it all.

        Raises:
            RelaError: another one lies there, or the images have changed since their features were made.
        """
        self.take_up()
        self.note()
        self.put(MAP, lambda path: shutil.copyfile(self.run_.targets.folder / "map.safetensors", path))
        splits = {name: self.split(name) for name in self.run_.dataset.splits if self.run_.dataset.count(name)}
        views = self.views() if self.run_.config.has_views else None
        if self.images == "copy":
            self.pack()
        facts = self.facts(splits, views)
        self.put(CARD, lambda path: path.write_text(card_text(facts, self.files), encoding="utf-8"), anew=True)
        facts |= {"files": dict(sorted(self.files.items())), "created": provenance()["created"]}
        write_json(self.to / FACTS, facts)
        (self.to / BEGUN).unlink(missing_ok=True)
        return facts

    # ------------------------------------------------------------------------------------------ going on

    def take_up(self) -> None:
        """The files that an earlier call has finished, and that still are what it wrote."""
        for name in (BEGUN, FACTS):
            try:
                before = load_json(self.to / name)[0]
            except (OSError, Damaged):
                continue
            check_same(section(before, "made_of"), self.made_of, f"{self.to} holds another efficient dataset")
            for file, facts in section(before, "files").items():
                if problem := file_damage(self.to / file, facts, contents=True):
                    warn(f"{self.to / file} {problem}; it is made again")
                else:
                    self.files[file] = facts
            (self.to / FACTS).unlink(missing_ok=True)
            return

    def note(self) -> None:
        """Which files are finished."""
        write_json(self.to / BEGUN, {"made_of": self.made_of, "files": self.files})

    def put(self, name: str, write: Callable[[Path], object], anew: bool = False) -> None:
        """A file, unless an earlier call has finished it."""
        if name in self.files and not anew:
            return
        write_atomic(self.to / name, write, "--to FOLDER")
        self.add(name)
        self.note()

    def add(self, name: str) -> None:
        path = self.to / name
        self.files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    # ------------------------------------------------------------------------------------------ the pieces

    def split(self, split: str) -> Facts:
        """All shards of a split: targets, and what each sample is."""
        rows, labels = self.run_.dataset.choose(split)
        targets = safe_open(self.run_.targets.folder / f"{split}.safetensors", "pt").get_slice("targets")
        count, width = targets.get_shape()
        if count != len(rows):
            raise RelaError(
                f"{split} has {len(rows)} images now and had {count} when its targets were made; say "
                f"`rela data check` with the same words, then `rela convert` again"
            )
        size = 2 if targets.get_dtype() == "F16" else 4
        step = max(1, self.shard_bytes // (width * size + SAMPLE_BYTES))
        names = [f"{split}-{i:05d}-of-{-(-count // step):05d}.safetensors" for i in range(-(-count // step))]
        done = next((i for i, name in enumerate(names) if name not in self.files), len(names))
        if done < len(names):
            ensure_room(self.to, (len(names) - done) * step * (width * size + SAMPLE_BYTES))
            contents = samples(self.run_.dataset, split, rows, done * step)
            contents = with_progress(contents, f"convert {split}", count, done * step)
            for i in range(done, len(names)):
                part = slice(i * step, min((i + 1) * step, count))
                piece = shard_columns(targets[part], rows[part], None if labels is None else labels[part], contents)
                self.put(names[i], lambda path, piece=piece: save_file(piece, path), anew=True)  # type: ignore[misc]
        return {
            "samples": count,
            "width": width,
            "type": targets.get_dtype(),
            "labels": labels is not None,
            "hash_of": "image files" if has_files(self.run_.dataset, split) else "pixels",
            "shards": names,
        }

    def views(self) -> Facts:
        """All shards of the light views of train: their targets, and where each is cut."""
        targets = RowFile(self.run_.view_targets.folder / "train.safetensors", "targets")
        boxes = load_file(self.run_.view_targets.folder / "boxes.safetensors")["boxes"]
        count, row_bytes = boxes.shape[1], targets.shape[1] * targets.dtype.itemsize + 2 * boxes[0].numel()
        step = max(1, self.shard_bytes // row_bytes)
        total = -(-len(targets) // step)
        names = [f"train-views-{i:05d}-of-{total:05d}.safetensors" for i in range(total)]
        ensure_room(self.to, row_bytes * step * sum(name not in self.files for name in names))
        for i, (name, block) in enumerate(zip(names, targets.blocks(step), strict=True)):
            piece = {"targets": block.contiguous(), "boxes": boxes[i * step : (i + 1) * step].contiguous()}
            self.put(name, lambda path, piece=piece: save_file(piece, path))  # type: ignore[misc]
        cut = json.loads(json.dumps(self.run_.artifacts.source.view))
        width = targets.shape[1] // count
        return {"count": count, "width": width, "type": DTYPE_NAMES[targets.dtype], "cut": cut, "shards": names}

    def pack(self) -> None:
        """The images, as a pack in a folder of its own; it goes on by itself."""
        place = self.to / IMAGES
        place.mkdir(exist_ok=True)
        remove_temporaries(place)
        Packer(self.run_.dataset, Place(str(place)), Encoding(), PACK).run()
        for path in sorted(place.iterdir()):
            if path.name[0] != "." and f"{IMAGES}/{path.name}" not in self.files:
                self.add(f"{IMAGES}/{path.name}")
        self.note()

    # ------------------------------------------------------------------------------------------- the facts

    def facts(self, splits: dict[str, Facts], views: Facts | None) -> Facts:
        """Everything that a run, a person or another program needs to know of it."""
        run = self.run_
        features, targets = run.features.manifest or {}, run.targets.manifest or {}
        kinds = ("images", *CLEAN, *(VIEWS if views else ()))
        return {
            "format": EFFICIENT_FORMAT,
            "made_of": self.made_of,
            "dataset": self.dataset_facts,
            "prior": self.prior_facts(features),
            "transport": {
                "name": run.config.transport.name,
                "target": run.config.transport.target,
                "options": run.config.transport.options,
                "ordered": targets["ordered"],
                "per_feature": targets.get("per_feature", 1),
            },
            "splits": splits,
            **({"views": views} if views else {}),
            "spec": {kind: getattr(run, kind).spec for kind in kinds},
            "made": {kind: portable_facts(getattr(run, kind).manifest) for kind in kinds},
            "images": self.images,
            "versions": {**versions(), "stages": VERSIONS},
        }

    @cached_property
    def dataset_facts(self) -> Facts:
        """What dataset=efficient has to know of the dataset."""
        run, dataset, part = self.run_, self.run_.dataset, self.run_.config.dataset
        options = dict(part.options)
        if "root" in options:
            place = os.path.abspath(os.path.expanduser(str(options["root"])))
            options["root"] = place if self.images == "link" else None
        side = (run.images.manifest or {}).get("decoded_size", dataset.side) if dataset.on_disk else dataset.side
        return {
            "name": part.name,
            "target": part.target,
            "options": options,
            "called": run.called["dataset"],
            "source": dataset.identity_of_images(),
            "limits": dataset.limits,
            "full_counts": {split: dataset.full_count(split) for split in dataset.splits},
            "flip": dataset.flip,
            "classes": dataset.classes,
            "label_set": dataset.label_set,
            "why_unprobed": dataset.why_unprobed,
            "on_disk": dataset.on_disk,
            "image_size": dataset.image_size or (side if dataset.on_disk else None),
            "decode_size": getattr(dataset, "decode_size", None) or (side if dataset.on_disk else None),
            "side": side,
        }

    def prior_facts(self, features: Facts) -> Facts:
        """What a run, a table and a reader have to know of the prior."""
        prior = self.run_.config.prior
        labels = seen.label_facts(prior, self.run_.dataset)
        told, is_unknown = labels["prior_labels_seen"], labels["labels_unknown"]
        return {
            "name": prior.name,
            "called": self.run_.called["prior"],
            **run_of(prior),
            "identity": self.run_.prior_identity,
            "features": features.get("feature_dim"),
            "precision": self.run_.config.runtime.extract_precision,
            **{key: of_each(prior, key) for key in ("licence", "source", "trained_on")},
            "labels_seen": None if is_unknown and not told else told,
            **({"labels_unknown": True} if is_unknown and told else {}),  # of some members it is known
        }


def of_each(prior: Part, key: str) -> str | None:
    """What a prior's card says; of an ensemble what each member's does, by name; None where none does."""
    if not prior.members:
        found: str | None = getattr(prior.card, key)
        return found
    told = {one.name: getattr(one.card, key) for one in prior.members}
    return "; ".join(f"{name}: {text or 'not known'}" for name, text in told.items()) if any(told.values()) else None


def shard_columns(targets: Tensor, rows: Array, labels: Array | None, contents: Iterator[Sample]) -> dict[str, Tensor]:
    """A shard: `SHARD_COLUMNS` of data/efficient/folder.py says what each is.

    Raises:
        RelaError: there are fewer samples than targets.
    """
    found = list(islice(contents, len(rows)))
    if len(found) < len(rows):
        raise RelaError("images have gone while they were converted: `rela data check` says which are there")
    hashes = np.frombuffer(b"".join(digest for _, digest in found), dtype=np.uint8).reshape(-1, 32)
    piece = {"targets": targets.contiguous(), "row": torch.from_numpy(rows.astype(np.int64))}
    piece["sha256"] = torch.from_numpy(hashes.copy())
    if labels is not None:
        piece["label"] = torch.from_numpy(labels.astype(np.int64))
    if any(name for name, _ in found):
        names = [os.fsencode(name) for name, _ in found]
        piece["name"] = torch.from_numpy(np.frombuffer(b"".join(names), dtype=np.uint8).copy())
        piece["name_end"] = torch.from_numpy(np.cumsum([len(name) for name in names], dtype=np.int64))
    return piece


def portable_facts(manifest: Facts | None) -> Facts:
    """The facts of an entry without what is about its own folder."""
    own = ("kind", "spec", "files", "created", "host", "pid")
    return {key: value for key, value in (manifest or {}).items() if key not in own}
