"""Files into tensors: forms that people save, files that lie about their size, files of other libraries, shards."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from rela_cli.errors import ConfigError, MissingError
from rela_cli.priors.reading import read_state
from rela_cli.weights.kinds import kind_of
from rela_cli.weights.locate import identity, locate
from tests.factories import config

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.float16)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())


class Split(enum.Enum):
    TRAIN = 1


class Settings(dict):  # type: ignore[type-arg]
    """As EasyDict and yacs have theirs: a dict with attributes."""


class Items(list):  # type: ignore[type-arg]
    pass


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1


EXTRAS: dict[str, Callable[[], Any]] = {
    "argparse": lambda: argparse.Namespace(lr=1, root=Path("a")),
    "numpy scalar": lambda: np.float64(71.2),
    "numpy array": lambda: np.arange(3),
    "omegaconf": lambda: OmegaConf.create({"a": [1, {"b": 2}]}),
    "date": lambda: {"when": datetime.datetime.now(datetime.UTC), "took": datetime.timedelta(1)},
    "enum as a key": lambda: {Split.TRAIN: 1, Path("x"): 2},
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "deque": lambda: collections.deque([1, 2]),
    "dict with attributes": lambda: Settings(a=1, b=Settings(c=2)),
    "list of one's own": lambda: Items([1, 2]),
    "slots": Slotted,
    "class": lambda: torch.optim.AdamW,
    "bytes": lambda: [b"abc", frozenset((1,)), range(3), 2**70, complex(1, 2)],
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_load_whatever_lies_beside_them(tmp_path: Path, extra: str, is_zip: bool) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({**STATE, "extra": EXTRAS[extra]()}, path, _use_new_zipfile_serialization=is_zip)
    assert same(read_state(path))


def test_what_is_left_out_is_said_and_tensors_in_dicts_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"model": Settings(STATE), "args": argparse.Namespace(lr=1)}, path)
    assert same(read_state(path), {f"model.{key}": value for key, value in STATE.items()})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"only tensors are read; left out are objects of argparse.Namespace, {__name__}.Settings" in said


class Runs:
    """Would write a file where a pickle is loaded as pickles usually are."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_nothing_is_run(tmp_path: Path, is_zip: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({**STATE, "x": Runs(exec, f"open({str(mark)!r}, 'w')")}, path, _use_new_zipfile_serialization=is_zip)
    assert same(read_state(path))
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the trap itself works"


def test_what_torch_refuses_is_named_on_one_line_with_a_way_out(tmp_path: Path) -> None:
    import os

    path = tmp_path / "evil.pth"
    torch.save({**STATE, "x": Runs(os.system, "true")}, path)
    with pytest.raises(MissingError) as caught:
        read_state(path)
    words = str(caught.value)
    assert "posix.system" in words and "torch.save(model.state_dict(), FILE)" in words
    assert "\x1b" not in words and "\n" not in words


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_wrappers_go_from_every_place_in_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    wrapped = {"_orig_mod.a._fsdp_wrapped_module.weight": STATE["a.weight"], "_checkpoint_wrapped_module.b": STATE["b"]}
    save_file(wrapped, path) if suffix == "safetensors" else torch.save(wrapped, path)
    assert same(read_state(path))
    twice = {**wrapped, "b": torch.zeros(3)}
    save_file(twice, path) if suffix == "safetensors" else torch.save(twice, path)
    with pytest.raises(MissingError, match=r"two tensors called 'b'"):
        read_state(path)


# -------------------------------------------------------------------------------------------- files that are not sound


def test_nesting_without_end(tmp_path: Path) -> None:
    path, loop = tmp_path / "w.pth", dict[str, Any](STATE)
    loop["self"] = loop
    torch.save(loop, path)
    with pytest.raises(MissingError, match=r"nests more than 32 deep"):
        read_state(path)
    wide: dict[str, Any] = {}
    for _ in range(25):
        wide = {"a": wide, "b": wide}
    torch.save(wide, path)
    with pytest.raises(MissingError, match=r"more than 1,000,000 items"):
        read_state(path)


def test_files_that_would_take_more_memory_than_they_have(tmp_path: Path) -> None:
    path = tmp_path / "w"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/data/0", bytes(200_000_000))
    with pytest.raises(MissingError, match=r"has 0.2 MB and unpacks to 200 MB"):
        read_state(path)
    torch.save({"a": torch.zeros(1).expand(10**9)}, path)
    with pytest.raises(MissingError, match=r"unpacks to 4000 MB"):
        read_state(path)


@pytest.mark.parametrize("length", [3_000_000_000 - 8, 150_000_000])
def test_a_header_is_not_read_before_its_length_is_judged(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(3_000_000_000)  # a hole: it takes no room
    with pytest.raises(MissingError, match=rf"its header would have {length} bytes"):
        kind_of(path)


def test_a_deep_header(tmp_path: Path) -> None:
    path, text = tmp_path / "w.safetensors", b'{"a":' + b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(MissingError, match="truncated or damaged: its header cannot be read"):
        kind_of(path)


@pytest.mark.parametrize("suffix", ["pth", "pt", "pt2"])
def test_a_flipped_bit_in_an_archive_is_seen(tmp_path: Path, suffix: str) -> None:
    """torch writes checksums and does not compare them."""
    from rela_cli.priors.exported import open_program

    path, network = tmp_path / f"w.{suffix}", nn.Conv2d(3, 8, 3)
    if suffix == "pth":
        torch.save(network.state_dict(), path)
    elif suffix == "pt":
        torch.jit.save(torch.jit.script(network), path)
    else:
        torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)), path)
    data = bytearray(path.read_bytes())
    data[data.find(network.weight.detach().numpy().tobytes()[:12]) + 6] ^= 4
    path.write_bytes(data)
    with pytest.raises(MissingError, match=r"is damaged: Bad CRC-32"):
        read_state(path) if suffix == "pth" else open_program(path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_state(path))


# -------------------------------------------------------------------------------------------- files of other libraries


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, b"1")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "w.npz": (lambda path: np.savez(path, a=np.zeros(3)), "a file of numpy arrays"),
    "w.npy": (lambda path: np.save(path, np.zeros(3)), "a numpy array"),
    "w.keras": (lambda path: archive(path, "metadata.json", "config.json", "model.weights.h5"), "a Keras model"),
    "w.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file"),
    "w.tflite": (lambda path: path.write_bytes(struct.pack("<I", 28) + b"TFL3" + bytes(100)), "a TFLite model"),
    "w.pb": (lambda path: path.write_bytes(b"\n\x10\n\x04node" + bytes(100)), "a TensorFlow graph"),
    "w.zip": (lambda path: archive(path, "readme.txt"), r"a zip archive of other things \('readme.txt'\)"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_libraries_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    make, words = FOREIGN[name]
    make(tmp_path / name)
    with pytest.raises(MissingError, match=rf"{name} is {words}.*, which rela cannot read. .*safetensors") as caught:
        locate(config("prior=exported", f"prior.weights={tmp_path / name}").prior)
    assert "trust" not in str(caught.value)


# -------------------------------------------------------------------------------------------- shards


def shards(folder: Path, suffix: str = "safetensors", **more: str) -> Path:
    for number, (key, value) in enumerate(STATE.items(), 1):
        path = folder / f"model-0000{number}-of-00002.{suffix}"
        save_file({key: value}, path) if suffix == "safetensors" else torch.save({key: value}, path)
    names = {key: f"model-0000{n}-of-00002.{suffix}" for n, key in enumerate(STATE, 1)} | more
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 30}, "weight_map": names}, indent=2))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_is_the_tensors_of_its_shards(tmp_path: Path, suffix: str) -> None:
    index = shards(tmp_path, suffix)
    assert kind_of(index) == "index"
    assert same(read_state(index))
    prior = config("prior=checkpoint", f"prior.weights={index}").prior
    before = identity(prior)["weights"]
    second = tmp_path / f"model-00002-of-00002.{suffix}"
    second.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=rf"names model-00002-of-00002.{suffix}, which is not beside it"):
        locate(prior)
    other = {"b": torch.zeros(3, dtype=torch.float16)}
    save_file(other, second) if suffix == "safetensors" else torch.save(other, second)
    assert identity(prior)["weights"] != before, "the content of every shard counts"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_shards_lie_beside_their_index(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingError, match=r"shards have to lie beside it"):
        read_state(shards(tmp_path, c=name))


def test_a_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"model-00001-of-00002.safetensors lacks c$"):
        read_state(shards(tmp_path, c="model-00001-of-00002.safetensors"))


@pytest.mark.parametrize("text", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{", '{"a":' * 100_000])
def test_other_json_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MissingError, match=r"no index of shards|no file of weights|not a file of weights"):
        read_state(tmp_path / "config.json")


def test_a_script_needs_a_word_before_it_is_read(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"prior.trust=true"):
        read_state(tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt", trust=True).keys() == {"weight", "bias"}
