"""Rubbish in, an error that names it out: loaders are fed a fixed number of inputs each, and rules hold for any input.

A seed that ever failed goes into seeds.json under its loader's name and is tried first from then on. RELA_FUZZ=20 tries
twenty times as many.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from rela_cli.artifacts import Entry, damage, fingerprint, read_json
from rela_cli.composer import compose
from rela_cli.config import from_tree, lengths, to_tree
from rela_cli.data.images import Blob, decode
from rela_cli.data.subset import epoch_indices
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.inventory import take
from rela_cli.kinds import kind_of
from rela_cli.priors.reading import read_state
from rela_cli.redact import redact
from rela_cli.weights import run_facts

from ..factories import config

SEEDS: dict[str, list[int]] = json.loads((Path(__file__).parent / "seeds.json").read_text())
FACTOR = int(os.environ.get("RELA_FUZZ", "1"))
PROPERTY = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def fuzz(name: str, count: int, attempt: Callable[[random.Random], object], allowed: type[Exception]) -> None:
    """`attempt` for each seed; anything but `allowed` names the seed to keep."""
    for seed in [*SEEDS.get(name, []), *range(count * FACTOR)]:
        try:
            attempt(random.Random(seed))
        except allowed:
            continue
        except BaseException as error:
            pytest.fail(f"{name}: seed {seed} gave {type(error).__name__}: {error}; add it to seeds.json")


def damaged(source: random.Random, data: bytes) -> bytes:
    """Some bytes changed, cut out, doubled or put in; header bytes more often than others."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 6)):
        place = source.randrange(min(len(changed), source.choice((16, 64, 1 << 30)))) if changed else 0
        kind = source.randrange(5)
        if kind == 0 and changed:
            changed[place] = source.randrange(256)
        elif kind == 1:
            del changed[place : place + source.randint(1, 40)]
        elif kind == 2:
            changed[place:place] = bytes(source.randrange(256) for _ in range(source.randint(1, 20)))
        elif kind == 3:
            changed = changed[:place]
        else:
            changed[place:place] = changed[place : place + source.randint(1, 40)]
    return bytes(changed)


# ----------------------------------------------------------------------------------------------------- loaders of bytes


def pictures() -> list[bytes]:
    pixels = np.random.RandomState(0).randint(0, 255, (16, 20, 3), dtype=np.uint8)
    found = []
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        found.append(buffer.getvalue())
    deep = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(deep, "PNG")
    return [*found, deep.getvalue()]


@pytest.mark.filterwarnings("ignore")
def test_images() -> None:
    """Pixels of the right shape, or the name of the file."""
    sources = pictures()

    def attempt(source: random.Random) -> None:
        size = source.choice((None, 8))
        try:
            found = decode(Blob("the file", damaged(source, source.choice(sources))), size)
        except MissingError as error:
            assert "the file" in str(error)
            raise
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        assert size is None or found.shape == (8, 8, 3)

    fuzz("images", 1500, attempt, MissingError)


def test_safetensors(tmp_path: Path) -> None:
    """All tensors, or an error: never a part of the file, never a crash."""
    whole = save({"a.weight": torch.arange(24.0).reshape(4, 6), "b": torch.ones(3, dtype=torch.float16)})
    path = tmp_path / "w.safetensors"

    def attempt(source: random.Random) -> None:
        path.write_bytes(damaged(source, whole))
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_state(path).values())

    fuzz("safetensors", 1500, attempt, RelaError)


HEADERS = ['{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "{}", "[]", "null", '{"a":1}', '{"a":{}}', "{"]
HEADERS += ['{"a":{"data_offsets":[0]}}', '{"a":{"data_offsets":"x"}}', '{"a":{"data_offsets":[0,"8"]}}', '{"a":null}']


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("length", [0, None, 10**9, 2**63, 2**64 - 1])
def test_safetensors_headers(tmp_path: Path, header: str, length: int | None) -> None:
    """A length that lies does not make us take that much memory."""
    text = header.encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    if header == "{}" and length is None:
        assert read_state(tmp_path / "w") == {}, "a file without tensors is one, too"
        return
    with pytest.raises(RelaError):
        kind_of(tmp_path / "w")
        read_state(tmp_path / "w")


# ------------------------------------------------------------------------------------------------------ loaders of JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FILES = st.dictionaries(st.text(max_size=8), st.fixed_dictionaries({"bytes": JSON, "sha256": JSON}) | JSON, max_size=3)
TRAINED = {"train": {"image_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}}
MANIFESTS = st.fixed_dictionaries({}, optional=dict.fromkeys(("status", "inputs", "spec", "train", "host"), JSON))


@PROPERTY
@given(manifest=JSON | st.fixed_dictionaries({"files": FILES | JSON}))
def test_any_manifest_of_an_entry(tmp_path_factory: pytest.TempPathFactory, manifest: Any) -> None:
    """Whatever stands there, the entry is whole or is not; nothing is raised and nothing outside is looked at."""
    folder = tmp_path_factory.mktemp("entry")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert damage(folder, contents=True) is None or isinstance(damage(folder), str)
    entry = Entry("features", {"a": 1}, folder)
    entry.folder.mkdir(parents=True)
    (entry.folder / "manifest.json").write_text(json.dumps(manifest))
    assert entry.manifest is None or not entry.manifest["files"]


@PROPERTY
@given(manifest=MANIFESTS, result=JSON)
def test_any_manifest_of_a_run(tmp_path_factory: pytest.TempPathFactory, manifest: Any, result: Any) -> None:
    """`rela ls` and `rela show` have something to say about it."""
    from rela_cli.ls import as_json, show
    from rela_cli.show import lines

    outputs = tmp_path_factory.mktemp("outputs")
    run, entry = outputs / "runs" / "a", outputs / "cache" / "targets" / "b"
    for folder, value in ((run, manifest), (entry, {**manifest, "files": {}})):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(value))
    (run / "result.json").write_text(json.dumps(result))
    found = take(outputs)
    assert len(as_json(found)["runs"]) == 1  # type: ignore[arg-type]
    show(found)
    assert dict(lines(found.runs[0], outputs))["run"] == str(run)


@PROPERTY
@given(text=st.binary(max_size=64))
def test_any_json_file(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(text)
    assert read_json(path) is None or isinstance(read_json(path), dict)


@PROPERTY
@given(tree=JSON | st.fixed_dictionaries({"learner": JSON}), manifest=JSON | st.just(TRAINED))
def test_any_run_as_a_prior(tmp_path_factory: pytest.TempPathFactory, tree: Any, manifest: Any) -> None:
    """`prior.run=` of a folder with rubbish in it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(json.dumps(tree))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        assert isinstance(run_facts(folder)["learner"], dict)
    except RelaError as error:
        assert str(folder) in str(error)


# --------------------------------------------------------------------------------------------------------------- config

GOOD = to_tree(config())


def keys_of(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += keys_of(value, (*prefix, key))
    return found


KEYS = keys_of(GOOD)


@PROPERTY
@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), JSON), min_size=1, max_size=3))
def test_any_config_is_valid_or_refused_by_name(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    """A config that is taken survives a round trip; all others name what is wrong with them."""
    tree = json.loads(json.dumps(GOOD))
    for path, value in changes:
        here = tree
        for key in path[:-1]:
            here = here[key] if isinstance(here, dict) and isinstance(here.get(key), dict) else {}
        here[path[-1]] = value
    try:
        made = from_tree(tree)
    except ConfigError as error:
        assert str(error).strip()
        return
    assert from_tree(to_tree(made)) == made


WORDS = st.text(alphabet="abc.=+-~@{}[]$:,'\"\\ \n/0159_", max_size=14)


@settings(PROPERTY, max_examples=15)
@given(words=st.lists(st.sampled_from(["budget=", "prior=", "seed=", "+", "~", ""]).flatmap(
    lambda start: WORDS.map(lambda rest: start + rest)), min_size=1, max_size=2))  # fmt: skip
def test_any_override_is_taken_or_refused(words: list[str]) -> None:
    try:
        compose(["dataset=fake", *words])
    except ConfigError as error:
        assert str(error).strip()


# --------------------------------------------------------------------------------------------------------- fingerprints

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SPECS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


@PROPERTY
@given(spec=SPECS, source=st.randoms(use_true_random=False))
def test_fingerprints_do_not_see_the_order_of_keys(spec: dict[str, Any], source: random.Random) -> None:
    items = list(spec.items())
    source.shuffle(items)
    assert fingerprint(dict(items)) == fingerprint(spec) == fingerprint(json.loads(json.dumps(spec)))
    assert len(fingerprint(spec)) == 16


@PROPERTY
@given(one=SPECS, other=SPECS)
def test_fingerprints_see_every_value(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same


@PROPERTY
@given(tree=VALUES)
def test_redaction_keeps_the_shape_and_is_done_once(tree: Any) -> None:
    assert redact(redact(tree)) == redact(tree)
    assert type(redact(tree)) is type(tree)


# --------------------------------------------------------------------------------------------------------------- subset


@PROPERTY
@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10**6),
    samples=st.integers(1, 3000),
    budget=st.floats(0.001, 1),
    batch=st.integers(2, 64),
)
def test_subsets(seed: int, epoch: int, samples: int, budget: float, batch: int) -> None:
    """The stated size, no sample twice, none from outside; a larger budget of the epoch holds the smaller."""
    made = replace(config(), budget=budget, batch_size=batch)
    try:
        size = lengths(made, samples).subset_size
    except ConfigError:
        assert int(budget * samples + 1e-9) < batch
        return
    found = epoch_indices(seed, epoch, samples, size)
    assert len(found) == len(set(found.tolist())) == size <= budget * samples + 1e-6
    assert int(found.min()) >= 0 and int(found.max()) < samples
    assert torch.equal(found, epoch_indices(seed, epoch, samples, size))
    whole = epoch_indices(seed, epoch, samples, samples).tolist()
    assert set(found.tolist()) <= set(whole)
    order = {sample: place for place, sample in enumerate(whole)}
    assert [order[sample] for sample in found.tolist()] == sorted(order[sample] for sample in found.tolist())
