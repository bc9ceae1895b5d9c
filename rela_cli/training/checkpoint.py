"""Checkpoints of a run: what training needs to go on, in one file that is whole or not there.

    checkpoint-<step>-<16 digits of its sha256>.safetensors

Tensors lie in the file as they are, everything else as JSON in its header, so reading one runs no code. The name holds
the hash of the content: a file that was cut short or changed does not bear its own name. The last two are kept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rela_cli.errors import RelaError
from rela_cli.store.disk import ensure_room
from rela_cli.store.faults import fault
from rela_cli.store.files import Facts, file_sha256, sync, write_atomic
from rela_cli.store.notices import warn
from rela_cli.terminal import as_size

CHECKPOINT_FORMAT = 1  # bump it when what a checkpoint holds is laid out in another way
KEPT_CHECKPOINTS = 2  # the newest, and the one before it, should the newest turn out to be broken
LOGS = ("metrics.jsonl", "switch.jsonl")  # files that only grow; a checkpoint notes how long they were
TENSOR = "__tensor__"  # what stands in the JSON in a tensor's place


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: the step after which it was made, the state, and the lengths of the logs then."""

    step: int
    state: Facts
    lengths: dict[str, int]
    threads: int | None = None  # that it was computed with


class Checkpoints:
    """The checkpoints in a run's folder, and when the next one is due."""

    def __init__(self, folder: Path, every_seconds: float, before_save: Callable[[], None] = lambda: None) -> None:
        self.folder, self.every_seconds, self.before_save = folder, every_seconds, before_save
        self.restart(0, 0)

    # ----------------------------------------------------------------------------------------------- when

    def restart(self, step: int, phase: int) -> None:
        """Count the time from now: what is known after `step` is safe."""
        self.at, self.step, self.phase = time.monotonic(), step, phase

    def is_due(self, step: int, phase: int, is_last: bool) -> bool:
        """After the interval, at the end of a phase, and after the last step; never twice at the same step."""
        ends = is_last or phase != self.phase
        return step > self.step and (ends or time.monotonic() - self.at >= self.every_seconds)

    # ------------------------------------------------------------------------------------------------ write

    def ensure_room(self, size: int) -> None:
        """Before the first step: do the last two of `size` bytes fit, and the next one beside them?

        Those that are there take no more room. The backbones at the end are part of a state, so they fit where the
        next checkpoint would have been.

        Raises:
            DiskError: they do not.
        """
        coming = max(1, KEPT_CHECKPOINTS + 1 - len(self.found()))
        why = f"estimated before training: {coming} x {as_size(size)}, the checkpoints at hand and the next one"
        ensure_room(self.folder, coming * size, why)

    def save(self, step: int, phase: int, state: Facts) -> Path:
        """Write the state after `step` and let go of all but the last two. What is in the logs has been flushed."""
        self.before_save()
        tensors: dict[str, Tensor] = {}
        lengths = {name: synced(self.folder / name) for name in LOGS if (self.folder / name).exists()}
        facts = {"format": CHECKPOINT_FORMAT, "step": step, "lengths": lengths, "threads": torch.get_num_threads()}
        facts["state"] = pack(state, "", tensors)
        metadata = {"facts": json.dumps(facts)}
        path = write_atomic(  # straight from the tensors: bytes in memory would be once more as much as all of them
            self.folder / f"checkpoint-{step:010}.safetensors",
            lambda temporary: save_file(apart(tensors), temporary, metadata),
            named=lambda temporary: self.folder / f"checkpoint-{step:010}-{content_hash(temporary)}.safetensors",
        )
        for old in self.found()[KEPT_CHECKPOINTS:]:
            old.unlink()
        fault("checkpoint.after_prune")
        self.restart(step, phase)
        return path

    # ------------------------------------------------------------------------------------------------- read

    def found(self) -> list[Path]:
        """Complete checkpoints, the newest first; not all need be sound."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def latest(self) -> Saved | None:
        """The newest sound checkpoint. A broken one is set aside as *.corrupt, with a line on stderr."""
        for path in self.found():
            if saved := read(path):
                return saved
            os.replace(path, f"{path}.corrupt")
            warn(
                f"{path} is broken: its content is not what was written. It is set aside as *.corrupt, and "
                f"training goes on from the checkpoint before it, if there is one"
            )
        return None

    def rewind(self, saved: Saved | None) -> None:
        """Cut the logs back to where a checkpoint saw them; without one they go."""
        for name in LOGS:
            rewind(self.folder / name, saved.lengths.get(name) if saved else None)

    def clear(self) -> None:
        """Remove them all, broken ones too: the run is over."""
        for path in self.folder.glob("checkpoint-*.safetensors*"):
            path.unlink()


def read(path: Path) -> Saved | None:
    """A checkpoint, or None when its content is not what its name says.

    Raises:
        RelaError: another version of rela wrote it.
    """
    if content_hash(path) != path.stem.rpartition("-")[2]:
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        check_format(path, facts["format"])
        return Saved(facts["step"], unpack(facts["state"], tensors), facts["lengths"], facts.get("threads"))
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None


def content_hash(path: Path) -> str:
    """The 16 digits that a checkpoint's name holds."""
    return file_sha256(path)[:16]


def check_format(path: Path, format: int) -> None:
    """Whether we can read what another version may have written.

    Raises:
        RelaError: we cannot.
    """
    if format != CHECKPOINT_FORMAT:
        raise RelaError(
            f"{path} has format {format} and this version of rela reads {CHECKPOINT_FORMAT}. "
            f"Go on with the version that wrote it, or say resume=never to start again"
        )


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON; its tensors go to `tensors`, under their path in it, as a file can hold them.

    Those that lie on the host in one piece are not copied: nothing changes them before they are written.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {str(key): pack(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [pack(inner, f"{name}/{number}", tensors) for number, inner in enumerate(value)]
    return value


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own, or a file could not hold them: what shares it with one before is cloned."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return found


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` was given, with strings for keys and lists for sequences."""
    if isinstance(value, dict):
        is_tensor = value.keys() == {TENSOR}
        return tensors[value[TENSOR]] if is_tensor else {key: unpack(inner, tensors) for key, inner in value.items()}
    return [unpack(inner, tensors) for inner in value] if isinstance(value, list) else value


def tensor_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors of a state dict take in a file."""
    return sum(value.nbytes for value in state.values())


def synced(path: Path) -> int:
    """The length of a file whose bytes are on the disk."""
    sync(path)
    return path.stat().st_size


def rewind(path: Path, length: int | None) -> None:
    """Cut a log back; None removes it."""
    if length is None:
        path.unlink(missing_ok=True)
        return
    there = path.stat().st_size if path.exists() else 0
    if there < length:
        warn(f"{path} has lost {length - there} of its first {length} bytes; it goes on from there")
        return
    os.truncate(path, length)
