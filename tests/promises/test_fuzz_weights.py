"""Damaged files of weights, in every form: refused by name, or the tensors that the file really says."""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rela_cli.errors import RelaError
from rela_cli.priors.exported import Program, open_program, width_given
from rela_cli.priors.reading import read_state
from tests.promises.test_fuzz import damaged, fuzz

State = dict[str, Tensor]
SECONDS, BYTES = 30, 1_000_000_000  # that one file may take, and that all files together may
SCHEME = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def nested() -> object:
    """As training scripts save."""
    return {"epoch": 3, "args": {"lr": 0.1}, "state_dict": network().state_dict(), "odd": np.float64(1)}


def plain(folder: Path) -> Path:
    torch.save(nested(), folder / "w.pth")
    return folder / "w.pth"


def legacy(folder: Path) -> Path:
    torch.save(nested(), folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


def safetensors(folder: Path) -> Path:
    save_file({"a.weight": torch.arange(24.0).reshape(4, 6), "b": torch.ones(3).half()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def script(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(network(), torch.zeros(2, 3, 8, 8)), folder / "w.pt")
    return folder / "w.pt"


def program(folder: Path) -> Path:
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(network(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=batch), folder / "w.pt2"
    )
    return folder / "w.pt2"


def index(folder: Path) -> Path:
    save_file({"a": torch.arange(4.0)}, folder / "one.safetensors")
    torch.save({"b": torch.ones(3)}, folder / "two.bin")
    text = json.dumps({"metadata": {"total_size": 28}, "weight_map": {"a": "one.safetensors", "b": "two.bin"}})
    (folder / "w.index.json").write_text(text)
    return folder / "w.index.json"


# ---------------------------------------------------------------------------------------- what a file really says


def as_written(path: Path, original: State, found: State) -> None:
    """Archives carry checksums: what is read is what was written, or nothing."""
    assert all(torch.equal(value, original[name]) for name, value in found.items()), "other numbers than were written"
    assert found.keys() == original.keys(), "a part of what was written"


def as_the_header_says(path: Path, original: State, found: State) -> None:
    """safetensors have no checksums: numpy reads the same numbers by the header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    facts = {name: entry for name, entry in header.items() if name != "__metadata__"}
    assert found.keys() == facts.keys()
    for name, entry in facts.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        assert list(found[name].shape) == entry["shape"]
        assert found[name].nbytes == end - begin
        if scheme := SCHEME.get(entry["dtype"]):
            assert found[name].numpy().tobytes() == np.frombuffer(data[begin:end], scheme).tobytes()


def some_tensors(path: Path, original: State, found: State) -> None:
    """Old pickles have neither: whatever torch makes of them are tensors."""
    assert all(isinstance(value, Tensor) for value in found.values())


def opened(path: Path) -> State:
    """A program's tensors, after it has been tried as a prior tries it."""
    made = Program(open_program(path))
    width_given(made, str(path), 8)
    return dict(made.state_dict())


# -------------------------------------------------------------------------------------------------- the damage


def record(source: random.Random, data: bytes) -> bytes:
    """An archive whose checksums are right, and one of whose records is damaged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = source.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, damaged(source, old.read(name)) if name == chosen else old.read(name))
    return buffer.getvalue()


def header(source: random.Random, data: bytes) -> bytes:
    """A file of safetensors that says how long its damaged header is."""
    length = 8 + struct.unpack("<Q", data[:8])[0]
    text = damaged(source, data[8:length])
    return struct.pack("<Q", len(text)) + text + data[length:]


# TorchScript under right checksums is not among them: it is another program then, and may end the process that runs it.
Check = Callable[[Path, State, State], None]
Damage = Callable[[random.Random, bytes], bytes]
Form = tuple[Callable[[Path], Path], Callable[[Path], State], Check, Damage, int]
FORMS: dict[str, Form] = {
    "zip": (plain, read_state, as_written, damaged, 120),
    "record of a zip": (plain, read_state, some_tensors, record, 120),
    "legacy": (legacy, read_state, some_tensors, damaged, 120),
    "safetensors": (safetensors, read_state, as_the_header_says, damaged, 150),
    "header of safetensors": (safetensors, read_state, as_the_header_says, header, 150),
    "TorchScript": (script, partial(read_state, trust=True), as_written, damaged, 60),
    "TorchScript program": (script, opened, as_written, damaged, 60),
    "program": (program, opened, as_written, damaged, 60),
    "record of a program": (program, opened, some_tensors, record, 20),
    "index": (index, read_state, some_tensors, damaged, 120),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_weights(tmp_path: Path, form: str) -> None:
    write, read, check, damage, count = FORMS[form]
    path = write(tmp_path)
    original = read(path)
    wholes = {file: file.read_bytes() for file in tmp_path.iterdir()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def attempt(source: random.Random) -> None:
        for file, whole in wholes.items():
            file.write_bytes(whole)
        chosen = source.choice(sorted(wholes))
        chosen.write_bytes(damage(source, wholes[chosen]))
        started = time.monotonic()
        try:
            check(path, original, read(path))
        except RelaError as error:
            assert str(tmp_path) in str(error), "the file is named"
            assert "\x1b" not in str(error) and len(str(error)) < 2000
            raise
        finally:
            assert time.monotonic() - started < SECONDS

    fuzz(f"weights {form}", count, attempt, RelaError)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < BYTES, "no file takes much memory, whatever it says"
