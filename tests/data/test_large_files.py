"""dataset=webdataset, hf, litdata: files that the libraries themselves wrote, read by offsets and by mapping.

real_formats.tar.xz holds the same 6 train and 4 test JPEGs of two classes, saved by datasets 5.2.0 (save_to_disk),
written by webdataset 1.0.2 (ShardWriter) and optimized by litdata 0.2.76; two files of train each.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rela_cli import cli
from rela_cli.config.compose import compose
from rela_cli.data.base import Dataset
from rela_cli.data.decoding.images import Blob
from rela_cli.data.hf import HuggingFace
from rela_cli.data.litdata import LitData
from rela_cli.data.packed import Packed
from rela_cli.data.webdataset import WebDataset
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from tests.factories import config

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True}
HERE = Path(__file__).parent


def jpeg(number: int) -> bytes:
    """The images of real_formats.tar.xz, as they were made."""
    small = np.random.RandomState(number).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((20 + number, 16), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def real(tmp_path: Path) -> Path:
    with tarfile.open(HERE / "real_formats.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def shards(root: Path, **options: Any) -> WebDataset:
    words = {"image_column": "jpg;png", "label_column": "cls", "image_size": 8, **COMMON, **options}
    return WebDataset(root=str(root), **words)


def saved(root: Path, **options: Any) -> HuggingFace:
    words = {"hub": None, "image_column": "image", "label_column": "label", "image_size": 8, **COMMON, **options}
    return HuggingFace(root=str(root), **words)


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def bytes_in(dataset: Dataset, split: str) -> list[bytes]:
    return [blob.data for blob in dataset.encoded_images(split) if isinstance(blob, Blob)]


# ---------------------------------------------------------------------------------------------------- the real formats


def test_both_give_the_images_that_were_written(real: Path) -> None:
    one, other = shards(real / "shards"), saved(real / "saved")
    for dataset in (one, other):
        assert [dataset.full_count(split) for split in ("train", "test")] == [6, 4]
        assert dataset.why_unprobed is None
        assert np.array_equal(dataset.labels("train"), [0, 1, 0, 1, 0, 1])
        assert np.array_equal(dataset.labels("test"), [0, 1, 0, 1])
    for split in ("train", "test"):
        assert bytes_in(one, split) == bytes_in(other, split)
        assert len(set(bytes_in(one, split))) == one.full_count(split)
    with Image.open(BytesIO(bytes_in(one, "train")[5])) as image, Image.open(BytesIO(jpeg(5))) as made:
        assert image.size == (25, 16) and np.abs(np.asarray(image, int) - np.asarray(made, int)).max() <= 2
    assert (one.classes, other.classes) == (["0", "1"], ["cat", "dog"])
    third = LitData(str(real / "chunks"), image_column="image", label_column="label", image_size=8, **COMMON)
    for split in ("train", "test"):
        assert bytes_in(third, split) == bytes_in(one, split)
        assert np.array_equal(third.labels(split), one.labels(split))
    words = shards(real / "shards", label_column="json.label")
    assert words.classes == ["cat", "dog"] and np.array_equal(words.labels("test"), [0, 1, 0, 1])


PLACES = {"webdataset": "shards", "hf": "saved", "litdata": "chunks"}


@pytest.mark.parametrize("kind", ["webdataset", "hf"])
def test_features_are_those_of_the_same_images_in_a_folder(kind: str, real: Path) -> None:
    """From disk, in blocks of two; a folder has the images of one class after those of the other."""
    for split, count in (("train", 6), ("test", 4)):
        for i, data in enumerate(bytes_in(shards(real / "shards"), split)):
            path = real / "photos" / split / ["cat", "dog"][i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        assert i == count - 1
    words = ("batch_size=2", "prior=random", "prior.width=4", "dataset.image_size=8", "dataset.on_disk=true",
             "runtime.block_size=2", f"paths.outputs={real / 'outputs'}")  # fmt: skip
    found = []
    for name, place in ((kind, PLACES[kind]), ("image_folder", "photos")):
        made = config(f"dataset={name}", f"dataset.root={real / place}", *words)
        pipeline.run(made, until="extract")
        found.append(load_file(Run(made).features.folder / "train.safetensors")["features"])
    assert torch.equal(torch.cat((found[0][0::2], found[0][1::2])), found[1])


@pytest.mark.parametrize("kind", PLACES)
def test_a_pack_of_them_holds_the_same(kind: str, real: Path) -> None:
    data, outputs = (f"dataset={kind}", f"dataset.root={real / PLACES[kind]}"), f"--outputs={real / 'outputs'}"
    assert cli.main(["data", "check", *data, outputs]) == 0
    assert cli.main(["data", "pack", *data, "--to", str(real / "pack"), outputs]) == 0
    packed = Packed(str(real / "pack"), image_size=8, **COMMON)
    for split in ("train", "test"):
        assert bytes_in(packed, split) == bytes_in(shards(real / "shards"), split)
        assert np.array_equal(packed.labels(split), shards(real / "shards").labels(split))


def test_convert_and_train(real: Path) -> None:
    kind = "litdata"
    data = (f"dataset={kind}", f"dataset.root={real / PLACES[kind]}", "dataset.image_size=8")
    small = ("prior=random", "prior.width=4", "batch_size=2", f"--outputs={real / 'outputs'}")
    assert cli.main(["convert", *data, *small, "--to", str(real / "eff")]) == 0
    run = ("learner.width=4", "epochs=1", "batch_size=2", "probe.protocols=[knn]", "probe.knn_k=2", "runtime=cpu")
    words = ("train", "dataset=efficient", f"dataset.root={real / 'eff'}", *run, f"--outputs={real / 'new'}")
    assert cli.main([*words]) == 0
    result = json.loads((real / "new" / "runs" / "latest" / "result.json").read_text())
    assert result["train_samples"] == 6 and result["probe"]["knn"]["top1"] >= 0


# ------------------------------------------------------------------------------------------------------------- bytes


def test_a_tenth_of_the_budget_reads_a_tenth_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the index is there; it is remembered, and no later start reads a shard through."""
    images = [jpeg(i) for i in range(100)]
    for shard in range(4):
        part = range(25 * shard, 25 * shard + 25)
        members = {
            f"{i:03d}.{kind}": data for i in part for kind, data in (("jpg", images[i]), ("cls", b"%d" % (i % 3)))
        }
        write_shard(tmp_path / "shards" / f"train-{shard}.tar", members)
    assert shards(tmp_path / "shards", cache=tmp_path / "cache").full_count("train") == 100
    monkeypatch.setattr("rela_cli.data.files.tars.samples_in", lambda *_: pytest.fail("a shard is read through again"))
    dataset = shards(tmp_path / "shards", cache=tmp_path / "cache", on_disk=True)
    read: list[int] = []
    pread = os.pread

    def counted(file: int, length: int, start: int) -> bytes:
        read.append(length)
        return pread(file, length, start)

    monkeypatch.setattr(os, "pread", counted)
    rows = np.random.RandomState(0).permutation(100)[:10]
    assert [blob.data for blob in dataset.blobs("train", rows)] == [images[row] for row in rows]
    assert sum(read) == sum(len(images[row]) for row in rows)
    assert sum(read) < 0.12 * sum(map(len, images))


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", {"a.jpg": jpeg(1), "a.cls": b"0", "b.jpg": jpeg(3), "b.cls": b"1"})
    expected = bytes_in(shards(tmp_path, cache=tmp_path / "cache"), "train")
    (path,) = (tmp_path / "cache" / "index" / "shards").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole.replace(b"start", b"stort"), b"", whole[:200] + b"!" + whole[201:]):
        path.write_bytes(damaged)
        assert bytes_in(shards(tmp_path, cache=tmp_path / "cache"), "train") == expected
        assert path.read_bytes() == whole or damaged == whole


def test_a_shard_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train-0.tar", {"a.jpg": jpeg(1), "a.cls": b"0"})
    first = shards(tmp_path, cache=tmp_path / "cache").identity
    write_shard(path, {"a.jpg": jpeg(2), "a.cls": b"0", "b.jpg": jpeg(3), "b.cls": b"1"})
    again = shards(tmp_path, cache=tmp_path / "cache")
    assert again.full_count("train") == 2 and again.identity != first
    assert bytes_in(again, "train") == [jpeg(2), jpeg(3)]


def test_indices_that_no_dataset_reads_again_are_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, place = tmp_path / "out" / "cache", tmp_path / "shards é"
    for name in ("train-0", "train-1", "train-2"):
        write_shard(place / f"{name}.tar", {"a.jpg": jpeg(1), "a.cls": b"0"})
    shards(place, cache=cache)
    before = {path.name for path in (cache / "index" / "shards").iterdir()}
    write_shard(place / "train-1.tar", {"a.jpg": jpeg(2), "a.cls": b"0", "b.jpg": jpeg(3), "b.cls": b"1"})
    (place / "train-2.tar").unlink()
    np.savez(cache / "index" / "shards" / "old.npz", start=np.zeros(1))
    bytes_in(shards(place, cache=cache), "train")
    capsys.readouterr()
    assert cli.main(["clean", "--dry-run", f"--outputs={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "would go" in said and f"a shard that is gone: {place / 'train-2.tar'}" in said
    assert f"was written again: {place / 'train-1.tar'}" in said and "of an older version" in said
    assert cli.main(["clean", f"--outputs={tmp_path / 'out'}"]) == 0
    left = {path.name for path in (cache / "index" / "shards").iterdir()}
    assert len(left) == 2 and len(left & before) == 1
    assert bytes_in(shards(place, cache=cache), "train") == [jpeg(1), jpeg(2), jpeg(3)]
    capsys.readouterr()
    assert cli.main(["clean", f"--outputs={tmp_path / 'out'}"]) == 0 and "freed 0" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- faults

GOOD = {"a.jpg": b"1", "a.cls": b"0", "b.jpg": b"2", "b.cls": b"1"}


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (
            {"a.txt": b"x"},
            {},
            r"sample a has no file \.jpg or \.png \(it has txt\); say dataset\.image_column=EXTENSION",
        ),
        (GOOD | {"c.jpg": b"3"}, {}, r"train-0\.tar sample c has no label cls"),
        ({"a.jpg": b"1", "b.jpg": b"2", "a.cls": b"0"}, {}, "the files of sample a do not stand together"),
        ({"a.jpg": b"1", "a.json": b"{"}, {"label_column": "json.label"}, "the JSON file of sample a cannot be read"),
        ({}, {}, "holds no samples"),
        ({"a.jpg": b"1"}, {"root": "s3://x"}, "reads shards of this machine, not s3://x"),
    ],
)
def test_what_is_wrong_with_a_shard(members: dict[str, bytes], options: Any, message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", members)
    with pytest.raises((ConfigError, MissingError), match=message):
        WebDataset(
            **{
                "root": str(tmp_path),
                "image_column": "jpg;png",
                "label_column": "cls",
                "image_size": 8,
                **COMMON,
                **options,
            }
        )


@pytest.mark.parametrize("fault", ["cut", "end", "header", "garbage", "compressed", "name", "empty"])
def test_a_damaged_shard_is_named(fault: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "shards" / "train-0.tar", {f"{i}.jpg": jpeg(i) for i in range(4)})
    whole = path.read_bytes()
    messages = {"cut": "is cut short", "end": "the zeros that end a tar file are not there",
                "header": "no header of a file", "garbage": "cannot be read as a tar",
                "empty": "cannot be read as a tar", "compressed": "compressed shards",
                "name": r"holds no train\*\.tar"}  # fmt: skip
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    if fault in ("cut", "end"):
        path.write_bytes(whole[: len(whole.rstrip(b"\0")) - 100] if fault == "cut" else whole[:end])
    elif fault == "header":
        second = whole.index(b"1.jpg")
        path.write_bytes(whole[: second + 20] + b"!" + whole[second + 21 :])
    elif fault in ("garbage", "empty"):
        path.write_bytes(b"no tar" * 1000 if fault == "garbage" else b"")
    else:
        path.rename(path.with_name({"compressed": "train-0.tar.gz", "name": "part-0.tar"}[fault]))
    with pytest.raises(MissingError, match=messages[fault]):
        shards(tmp_path / "shards")


def test_shards_without_labels_train(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "train-0.tar", {"a.jpg": jpeg(0), "b.jpg": jpeg(1), ".hidden.jpg": b"", "__notes__.txt": b""}
    )
    dataset = shards(tmp_path)
    assert dataset.labels("train") is None and dataset.full_count("train") == 2 and dataset.full_count("test") == 0
    assert "has a label cls; for numbers say dataset.label_column=EXTENSION" in (dataset.why_unprobed or "")
    write_shard(tmp_path / "val" / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"9"})
    write_shard(tmp_path / "train-0.tar", {"a.jpg": jpeg(0), "a.cls": b"8"})
    with pytest.raises(ConfigError, match="test has classes that train does not have: 9"):
        shards(tmp_path)


@pytest.mark.parametrize("fault", ["file", "bytes", "state", "column", "label", "words", "nothing", "no train"])
def test_what_is_wrong_with_a_saved_dataset(fault: str, real: Path) -> None:
    root, options = real / "saved", {}
    arrow = root / "train" / "data-00001-of-00002.arrow"
    messages = {"file": "is gone, and .*state.json names it", "bytes": "cannot be read as an Arrow file",
                "state": r"state\.json cannot be read", "column": r"no column 'img' \(image, label\)",
                "label": "for numbers say dataset.label_column=NAME", "words": "holds int64, and no encoded images",
                "nothing": "holds no dataset_dict.json or state.json", "no train": "no split train"}  # fmt: skip
    if fault == "file":
        arrow.unlink()
    elif fault == "bytes":
        arrow.write_bytes(arrow.read_bytes()[:900])
    elif fault == "state":
        (root / "train" / "state.json").write_text("{")
    elif fault == "no train":
        (root / "dataset_dict.json").write_text('{"splits": ["test"]}')
    elif fault == "nothing":
        shutil.rmtree(root)
    options = {
        "column": {"image_column": "img"},
        "label": {"label_column": "class"},
        "words": {"image_column": "label"},
    }
    if fault == "label":
        assert messages[fault] in (saved(root, **options[fault]).why_unprobed or "")
        return
    with pytest.raises((MissingError, ConfigError), match=messages[fault]):
        saved(root, **options.get(fault, {}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gone", r"chunk-0-1\.bin is gone, and its index\.json names it"),
        ("cut", "is damaged, or no chunk of LitData"),
        ("empty", "its 0 bytes are not what it says"),
        ("sizes", "the sizes of a sample's fields are not its own size"),
        ("compressed", "says compression zstd: such chunks cannot be read by offsets"),
        ("index", r"index\.json is not what LitData's optimize writes"),
        ("field", r"samples have no field 'img' \(image, label, name\); say dataset\.image_column=NAME"),
        ("kind", "field 'name' holds str, and no encoded image"),
        ("words", "field 'name' holds str, and no whole number"),
        ("nothing", "holds no train/index.json"),
    ],
)
def test_what_is_wrong_with_chunks(fault: str, message: str, real: Path) -> None:
    root, options = real / "chunks", {"image_column": "image", "label_column": "label"}
    chunk, index = root / "train" / "chunk-0-1.bin", root / "train" / "index.json"
    options |= {
        "field": {"image_column": "img"},
        "kind": {"image_column": "name"},
        "words": {"label_column": "name"},
    }.get(fault, {})
    data = bytearray(chunk.read_bytes())
    if fault == "gone":
        chunk.unlink()
    elif fault == "sizes":
        data[16] += 1  # the first size of the first sample, behind 2 samples' offsets
        chunk.write_bytes(data)
    elif fault in ("cut", "empty"):
        chunk.write_bytes(data[:-5] if fault == "cut" else b"")
    elif fault == "compressed":
        index.write_text(index.read_text().replace('"compression": null', '"compression": "zstd"'))
    elif fault == "index":
        index.write_text("{}")
    elif fault == "nothing":
        shutil.rmtree(root / "train")
    with pytest.raises((MissingError, ConfigError), match=message):
        LitData(str(root), image_size=8, **options, **COMMON)


def test_folders_of_chunks_that_are_not_used_are_said(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = real / "chunks"
    for name in ("validation", "extra"):
        shutil.copytree(root / "val", root / name)
    made = LitData(str(root), image_column="image", label_column="label", image_size=8, **COMMON)
    assert made.files["test"][0].parent.name == "val" and made.full_count("test") == 4
    said = capsys.readouterr().err
    assert "folder validation is not used: val is taken" in said and "folder extra is not used: it is neither" in said


def test_shards_of_no_split_and_of_two_are_said(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = real / "shards"
    test = next(root.rglob("*test*.tar"), None) or next(root.rglob("*val*.tar"))
    shards(root)
    assert capsys.readouterr().err == ""
    shutil.copy(test, root / "extra-0.tar")
    other = "val-9.tar" if "test" in test.name else "test-9.tar"
    shutil.copy(test, root / other)
    assert shards(root).full_count("test") == 8
    said = capsys.readouterr().err
    assert "not used, since no name says train, test or validation: extra-0.tar" in said
    assert "files of test and of validation are taken together as test" in said


def test_splits_of_a_saved_dataset(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = real / "saved"
    shutil.copytree(root / "test", root / "validation")
    (root / "dataset_dict.json").write_text('{"splits": ["validation", "train", "test", "extra"]}')
    assert saved(root).files["test"][0].parent.name == "test"
    said = capsys.readouterr().err
    assert "split validation is not used: test is taken" in said and "split extra is not used: it is neither" in said
    alone = saved(root / "train")
    assert alone.full_count("train") == 6 and "has no split test or validation" in (alone.why_unprobed or "")


def test_the_hub_is_asked_once(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library fetches is saved to root, and a later start reads that."""
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(save_to_disk=lambda place: shutil.copytree(real / "saved", place))

    library = ModuleType("datasets")
    library.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("rela_cli.data.files.downloads.quick_to_fail", nullcontext)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for _ in range(2):
        assert saved(real / "fetched", hub="owner/name").full_count("train") == 6
    assert asked == ["owner/name"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'rela-cli\[datasets\]'"):
        saved(real / "other", hub="owner/name")


def test_their_yamls() -> None:
    for kind in PLACES:
        assert compose([f"dataset={kind}", "dataset.root=x"]).dataset.name == kind
