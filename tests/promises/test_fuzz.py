"""Rubbish in, an error that names it out: loaders are fed a fixed number of inputs each, and rules hold for any input.

A seed that ever failed goes into seeds.json under its loader's name and is tried first from then on. RELA_FUZZ=20 tries
twenty times as many, and RELA_FUZZ_FROM=1000000 other seeds than the usual ones.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from rela_cli.config.compose import compose
from rela_cli.config.lengths import lengths
from rela_cli.config.reading import from_tree, to_tree
from rela_cli.data.batches.subset import epoch_indices
from rela_cli.data.decoding.images import Blob, decode, is_image
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.priors.reading import read_state
from rela_cli.store.entries import Entry
from rela_cli.store.files import fingerprint, read_json
from rela_cli.store.integrity import damage
from rela_cli.store.outputs import take_inventory
from rela_cli.store.secrets import redact
from rela_cli.weights.kinds import kind_of
from rela_cli.weights.run_folder import run_facts
from tests.factories import config

SEEDS: dict[str, list[int]] = json.loads((Path(__file__).parent / "seeds.json").read_text())
FACTOR = int(os.environ.get("RELA_FUZZ", "1"))
PROPERTY = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


FUZZ_FROM = int(os.environ.get("RELA_FUZZ_FROM", "0"))
PATIENCE = 30  # seconds an input


def fuzz(name: str, count: int, attempt: Callable[[random.Random], object], allowed: type[Exception]) -> None:
    """`attempt` for each seed; anything but `allowed`, or a long wait, names the seeds to keep."""
    bad = []
    for seed in [*SEEDS.get(name, []), *range(FUZZ_FROM, FUZZ_FROM + count * FACTOR)]:
        try:
            with within(PATIENCE):
                attempt(random.Random(seed))
        except allowed:
            continue
        except Exception as error:
            bad.append(f"seed {seed} gave {type(error).__name__}: {error}")
    assert not bad, f"{name}: add them to seeds.json: {bad}"


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """A block that may not take longer."""

    def too_long(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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


PIXELS = np.random.RandomState(0).randint(0, 255, (16, 20, 3), dtype=np.uint8)
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16")


def written(image: Image.Image, form: str, **options: Any) -> bytes | None:
    """An image in a format; None where the two do not go together."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SystemError):
        return None
    return buffer.getvalue()


def pictures() -> list[bytes]:
    """A picture in every mode and format that Pillow writes here, some compressed in several ways."""
    Image.init()
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    images = {mode: deep if mode == "I;16" else Image.fromarray(PIXELS).convert(mode) for mode in MODES}
    found = [written(image, form) for form in sorted(Image.SAVE) for image in images.values()]
    for how in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        found += [written(image, "TIFF", compression=how) for image in images.values()]
    found += [written(images["RGB"], "JPEG", progressive=True), written(images["P"], "PNG", transparency=3)]
    found += [
        written(images["RGB"], form, save_all=True, append_images=[images["RGB"]]) for form in ("GIF", "PNG", "WEBP")
    ]
    return [data for data in found if data]


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


TAGS = (0x10F, 0x110, 0x11A, 0x132, 0x8769, 0x8825, 0xA005, 0x927C)
VALUES_OF_TAGS = (0, 8, 26, 60, 1 << 20, (1 << 32) - 5)


def exif_block(source: random.Random) -> bytes:
    """EXIF with an orientation among tags of any number, type, count and value; in half of them bytes are damaged."""
    order = source.choice("<>")

    def tag() -> bytes:
        number, kind = source.choice((*TAGS, source.randrange(65536))), source.randint(0, 14)
        value = source.choice((*VALUES_OF_TAGS, source.getrandbits(32)))
        return struct.pack(f"{order}HHII", number, kind, source.choice((0, 1, 2, 9, 1 << 31)), value)

    rows = [tag() for _ in range(source.randint(0, 5))]
    kind, count, turn = source.choice((3, 3, 3, 4, 2, 12)), source.choice((1, 1, 0, 3)), source.randint(0, 9)
    rows.insert(source.randint(0, len(rows)), struct.pack(f"{order}HHIHH", 0x112, kind, count, turn, 0))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, source.choice((len(rows), 500)))
    block = head + b"".join(rows) + source.randbytes(source.randint(0, 40))
    return b"Exif\0\0" + (damaged(source, block) if source.random() < 0.5 else block)


@pytest.mark.filterwarnings("ignore")
def test_exif() -> None:
    """Whatever EXIF holds, the pixels are those of the image without it, in one of the eight ways to hold a camera."""
    image, formats = Image.fromarray(PIXELS), {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}}
    turned = {}
    for form, options in formats.items():
        plain = decode(Blob("it", written(image, form, **options) or b""), None)
        turns = [np.rot90(pixels, n) for pixels in (plain, plain[:, ::-1]) for n in range(4)]
        turned[form] = {(turn.shape, turn.tobytes()) for turn in turns}

    def attempt(source: random.Random) -> None:
        form = source.choice(sorted(formats))
        data = written(image, form, exif=exif_block(source), **formats[form])
        found = decode(Blob("it", data or b""), None)
        assert (found.shape, found.tobytes()) in turned[form]

    fuzz("exif", 500, attempt, NoError)


class NoError(Exception):
    """None is allowed."""


NAMES = ("a", "b", ".hidden", "ü", "日本", "a b", "-x", "new\nline", "x" * 200, os.fsdecode(b"\xff\xfe"), "%s", "{}")
TREE_FILES = (".png", ".PNG", ".jpg", ".txt", "", ".tif", ".gz")


def grow(source: random.Random, folder: Path, depth: int, picture: bytes) -> None:
    """Files, folders, links, pipes, sockets and locked folders, below each other."""
    folder.mkdir(exist_ok=True)
    for i in range(source.randint(0, 5)):
        kind, name = source.randrange(14), source.choice(NAMES) + (str(i) if source.random() < 0.5 else "")
        path = folder / (name if kind < 5 or kind == 13 else name + source.choice(TREE_FILES))
        if path.exists() or path.is_symlink():
            continue
        if kind < 5:
            grow(source, path, depth + 1, picture) if depth < 5 else path.mkdir()
        elif kind < 10:
            path.write_bytes(source.choice((picture, picture, picture, b"", picture[:40])))
        elif kind == 10:
            targets = (".", "..", "../..", "nowhere", "/dev/zero", path.name, str(folder), "a")
            path.symlink_to(source.choice(targets))
        elif kind == 11:
            os.mkfifo(path)
        elif kind == 12 and len(os.fsencode(path)) < 100:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(os.fsencode(path))
        elif kind == 13:
            path.mkdir()
            path.chmod(0)


def regular_images(top: Path) -> set[str]:
    """Paths of all image files that no link leads to and no dot hides, by a walk of another make."""
    found = set()
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and is_image(name) and path.is_file() and not path.is_symlink():
                found.add(path.relative_to(top).as_posix())
    return found


def test_trees_of_folders(tmp_path: Path) -> None:
    """Every image is there, or said not to be; nothing else is raised, and nothing that is no file is opened."""
    picture = written(Image.fromarray(PIXELS), "PNG") or b""
    number = itertools.count()

    def attempt(source: random.Random) -> None:
        root = tmp_path / str(next(number))
        try:
            for part in source.choice((("train", "test"), ("train",), ("Train", "valid"), ())):
                root.mkdir(exist_ok=True)
                grow(source, root / part, 0, picture)
            grow(source, root, 3, picture)
            look(root)
        finally:
            for folder, folders, _ in os.walk(root):
                for name in folders:
                    os.path.islink(path := Path(folder, name)) or path.chmod(0o755)
            shutil.rmtree(root)

    fuzz("trees", 60, attempt, NoError)


def look(root: Path) -> None:
    """One tree, by both ways to meet what is no image."""
    common: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True, "image_size": 8}
    for on_error in ("skip", "raise"):
        try:
            dataset = ImageFolder(root=str(root), on_error=on_error, max_errors=1000, **common)
            images, labels = dataset.load("train")
        except MissingError:
            continue
        assert len(images) == dataset.count("train") and (labels is None or len(labels) == len(images))
        left, skipped = dataset.listed.left(), set(dataset.skipped.get("train", {}))
        missed = regular_images(dataset.layout.train) - set(dataset.files["train"]) - skipped
        loose = {path for path in missed if "/" not in path} if dataset.classes else set()
        assert missed == loose, "left out in silence"
        assert len(loose) <= left.get("loose", [0])[0]


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
    from rela_cli.commands.ls import inventory_facts, show
    from rela_cli.commands.show import lines

    outputs = tmp_path_factory.mktemp("outputs")
    run, entry = outputs / "runs" / "a", outputs / "cache" / "targets" / "b"
    for folder, value in ((run, manifest), (entry, {**manifest, "files": {}})):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(value))
    (run / "result.json").write_text(json.dumps(result))
    found = take_inventory(outputs)
    assert len(inventory_facts(found)["runs"]) == 1  # type: ignore[arg-type]
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
