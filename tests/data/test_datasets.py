"""The named datasets, from small files in their true formats that the tests write themselves."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import pickle
import struct
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from rela_cli.config.compose import compose
from rela_cli.config.lengths import lengths
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.data import imagenet
from rela_cli.data.base import Dataset
from rela_cli.data.files.downloads import quick_to_fail
from rela_cli.data.folders import TinyImagenet
from rela_cli.data.imagenet import Imagenet1k, Imagenet100
from rela_cli.data.labels import CIFAR100 as NAMES
from rela_cli.data.parquet import Parquet
from rela_cli.data.vision import Cifar100, Stl10, Torchvision
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline import pipeline
from rela_cli.store.files import read_json

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True}
NOWHERE = "http://127.0.0.1:9/x.zip"  # nothing listens there
WNIDS = ["n01440764", "n01443537", "n01484850"]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def paint(path: Path, colour: int, size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 255 - colour)).save(path, "PNG")


# -------------------------------------------------------------------------------------------------------- CIFAR-100


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """cifar-100-python with 30 train and 20 test images: rows of 3,072 bytes, red plane first, pickled as in 2009."""
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, (name, n) in enumerate({"train": 30, "test": 20}.items()):
        rows = {"data": noise(seed, n, 3072), "fine_labels": [i % 100 for i in range(n)], "coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(rows, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES.split()}, protocol=2))
    for name in ("train", "test"):
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, md5(folder / name)]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(folder / "meta")})
    monkeypatch.setattr(Cifar100, "sizes", {"train": 30, "test": 20})
    return tmp_path


def test_cifar100(cifar100: Path) -> None:
    dataset = Cifar100(root=str(cifar100), download=False, **COMMON)
    images, labels = dataset.load("train")
    assert np.array_equal(images, noise(0, 30, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels is not None and labels.tolist() == list(range(30))
    assert (dataset.count("test"), len(dataset.classes or ())) == (20, 100)
    assert (dataset.classes or [])[:2] == ["apple", "aquarium_fish"]


# ------------------------------------------------------------------------------------------------------------ STL-10


@pytest.fixture
def stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """stl10_binary: uint8, three planes an image, each plane column by column; labels from 1."""
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    sizes = {"unlabeled": 48, "train": 40, "test": 20}
    for seed, (name, n) in enumerate(sizes.items()):
        (folder / f"{name}_X.bin").write_bytes(noise(seed, n, 3, 96, 96).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(n)))
    (folder / "class_names.txt").write_text("\n".join(Stl10.classes) + "\n")
    names = {"train": ["train_X.bin", "train_y.bin", "unlabeled_X.bin"], "test": ["test_X.bin", "test_y.bin"]}
    for split, files in names.items():
        monkeypatch.setattr(STL10, f"{split}_list", [[name, md5(folder / name)] for name in files])
    monkeypatch.setattr(Stl10, "sizes", sizes)
    return tmp_path


def test_stl10(stl10: Path) -> None:
    dataset = Stl10(root=str(stl10), download=False, unlabelled=True, **COMMON)
    images, labels = dataset.load("train")
    assert labels is None
    assert np.array_equal(images, noise(0, 48, 3, 96, 96).transpose(0, 3, 2, 1)), "planes stand column by column"
    assert dataset.splits == ("train", "labelled", "test")
    assert dataset.load("labelled")[1].tolist() == [i % 10 for i in range(40)]  # type: ignore[union-attr]
    labelled = Stl10(root=str(stl10), download=False, unlabelled=False, **COMMON)
    assert (labelled.splits, labelled.count("train")) == (("train", "test"), 40)
    assert np.array_equal(labelled.load("train")[0], dataset.load("labelled")[0])
    assert labelled.identity != dataset.identity


@pytest.mark.parametrize("prior", ["random", "none"])
def test_the_probe_is_fitted_on_the_labelled_images_where_train_has_no_labels(
    stl10: Path, tmp_path: Path, prior: str
) -> None:
    words = [f"dataset.root={stl10}", f"paths.outputs={tmp_path}/out", "epochs=1", "batch_size=16", "learner.width=4"]
    words += ["dataset=stl10", f"prior={prior}", "probe.protocols=[knn]", "runtime.threads=1", "learner.stem=imagenet"]
    words += ["prior.width=4"] if prior == "random" else []
    outcome = pipeline.run(compose(words))
    result = read_json(outcome.folder / "result.json") if outcome.folder else None
    assert result is not None
    assert (result["train_samples"], result["test_samples"], result["classes"]) == (48, 20, 10)
    assert 0 <= result["probe"]["knn"]["top1"] <= 1
    assert 0 <= result["baselines"]["untrained"]["knn"]["top1"] <= 1
    if prior == "random":
        features = next((tmp_path / "out" / "cache" / "features").glob("[!.]*"))
        sizes = {path.stem: len(load_file(path)["features"]) for path in features.glob("*.safetensors")}
        assert sizes == {"train": 48, "labelled": 40, "test": 20}


# ----------------------------------------------------------------------------------------------------- Tiny-ImageNet


def tiny(root: Path, sorted_val: bool = False) -> Path:
    """The official archive's layout: boxes beside train images, and a val/ whose classes stand in a file."""
    folder = root / "tiny-imagenet-200"
    notes = []
    for number, wnid in enumerate(WNIDS):
        (folder / "train" / wnid).mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x_0.JPEG\t0\t0\t63\t63\n")
        for i in range(2):
            paint(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 80 * number + i, (64, 64))
        name = f"val_{2 - number}.JPEG"  # not in the classes' order
        paint(folder / "val" / (f"{wnid}" if sorted_val else "") / "images" / name, 80 * number, (64, 64))
        notes.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    if not sorted_val:
        (folder / "val" / "val_annotations.txt").write_text("".join(notes))
    paint(folder / "test" / "images" / "test_0.JPEG", 9)
    return root


def tiny_imagenet(root: Path, **options: Any) -> TinyImagenet:
    return TinyImagenet(root=str(root), image_size=64, **{**COMMON, "download": False, **options})


@pytest.mark.parametrize("sorted_val", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_tiny_imagenet(tmp_path: Path, sorted_val: bool, inside: bool) -> None:
    root = tiny(tmp_path, sorted_val)
    dataset = tiny_imagenet(root / "tiny-imagenet-200" if inside else root)
    assert (dataset.classes, dataset.why_unprobed) == (WNIDS, None)
    images, labels = dataset.load("train")
    assert (images.shape, labels.tolist()) == ((6, 64, 64, 3), [0, 0, 1, 1, 2, 2])  # type: ignore[union-attr]
    images, labels = dataset.load("test")
    assert labels is not None
    assert (images[:, 0, 0, 0] // 80).tolist() == labels.tolist(), "the colour says the class"
    assert sorted(labels.tolist()) == [0, 1, 2]


def test_tiny_imagenet_labels_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    before = tiny_imagenet(tiny(tmp_path)).identity
    notes = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    notes.write_text(notes.read_text().replace(WNIDS[0], WNIDS[1]))
    assert tiny_imagenet(tmp_path).identity != before
    notes.write_text(notes.read_text().replace("val_0", "val_9"))
    with pytest.raises(MissingError, match=r"val_annotations\.txt does not say the class of val_0\.JPEG"):
        tiny_imagenet(tmp_path).labels("test")
    notes.unlink()
    with pytest.raises(MissingError, match=r"val_annotations\.txt does not exist"):
        tiny_imagenet(tmp_path).labels("test")


# ------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda **o: Cifar100(**o).load("train"), "cifar-100-python"),
        (lambda **o: Stl10(unlabelled=True, **o).load("train"), "stl10_binary"),
        (lambda **o: TinyImagenet(image_size=64, **o), "tiny-imagenet-200"),
        (lambda **o: Torchvision(dataset="GTSRB", image_size=8, **o), "GTSRB"),
    ],
    ids=["cifar100", "stl10", "tiny_imagenet", "torchvision"],
)
def test_what_is_not_there_is_said_at_once(
    make: Callable[..., Any], expected: str, download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets as tv
    import torchvision.datasets.gtsrb as gtsrb

    for cls in (tv.CIFAR100, tv.STL10, TinyImagenet):
        monkeypatch.setattr(cls, "url", NOWHERE)
    monkeypatch.setattr(gtsrb, "download_and_extract_archive", lambda *_, **__: tv.utils.download_url(NOWHERE, "/tmp"))
    started = time.monotonic()
    with pytest.raises(MissingError, match=rf"is not in dataset.root={tmp_path}.*{expected}") as caught:
        make(root=str(tmp_path), download=download, **COMMON)
    assert time.monotonic() - started < 8
    assert ("could not be fetched" in str(caught.value) and "refused" in str(caught.value)) == download


def test_a_host_without_an_answer_is_given_up_by_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rela_cli.machine.network.CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(5))
    with pytest.raises(OSError, match=r"example\.org: no answer in 0\.2 s"), quick_to_fail("http://example.org/x.tgz"):
        pass


# ------------------------------------------------------------------------------------------- any of torchvision's


def test_torchvision_with_a_train_keyword(tmp_path: Path) -> None:
    """FashionMNIST: big-endian idx files."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, (name, n) in enumerate({"train": 30, "t10k": 20}.items()):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 2051, n, 28, 28) + noise(seed, n, 28, 28).tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + bytes(i % 10 for i in range(n)))

    def made(**options: Any) -> Torchvision:
        given = {"dataset": "FashionMNIST", "root": str(tmp_path), "download": False, "image_size": None}
        return Torchvision(**{**given, **COMMON, **options})

    dataset = made()
    images, labels = dataset.load("train")
    assert np.array_equal(images, np.repeat(noise(0, 30, 28, 28)[..., None], 3, axis=3))
    assert labels is not None and labels.tolist() == [i % 10 for i in range(30)]
    assert (dataset.count("test"), (dataset.classes or [])[0]) == (20, "T-shirt/top")
    assert made().identity == dataset.identity
    (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, 30, 28, 28) + noise(7, 30, 28, 28).tobytes())
    assert made().identity != dataset.identity, "known by what it holds"


@pytest.mark.parametrize("place", ["FashionMNIST/raw", ".", "from a friend"])
def test_archives_that_lie_there_are_taken_without_network(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    root, known = tmp_path / "data", []
    (root / place).mkdir(parents=True)
    for seed, (name, n) in enumerate({"train": 30, "t10k": 20}.items()):
        pixels = struct.pack(">4I", 2051, n, 28, 28) + noise(seed, n, 28, 28).tobytes()
        labels = struct.pack(">2I", 2049, n) + bytes(i % 10 for i in range(n))
        for kind, data in (("images-idx3", pixels), ("labels-idx1", labels)):
            path = root / place / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(data))
            known.append((path.name, md5(path)))
    monkeypatch.setattr(FashionMNIST, "resources", known)
    given: dict[str, Any] = {"dataset": "FashionMNIST", "download": True, "image_size": None, **COMMON}
    made = Torchvision(root=str(root), **given)
    assert np.array_equal(made.load("train")[0][..., 0], noise(0, 30, 28, 28))
    assert Torchvision(root=str(root), **{**given, "download": False}).count("test") == 20, "it stays there"
    assert sorted(path.name for path in root.iterdir()) == sorted({"FashionMNIST", place.partition("/")[0]} - {"."} | {
        path.name for path in root.glob("*.gz")}), "no locks, no parts"  # fmt: skip


def test_an_archive_that_is_not_the_official_one_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(b"rubbish")
    with pytest.raises(MissingError, match=r"(?s)corrupted.*train-images-idx3-ubyte\.gz was tried") as caught:
        Torchvision(dataset="FashionMNIST", root=str(tmp_path), download=True, image_size=None, **COMMON)
    assert "dataset.download=true" not in str(caught.value), "that is the default"
    assert (raw / "train-images-idx3-ubyte.gz").read_bytes() == b"rubbish", "yours is left as it is"


def test_the_archive_of_cifar_is_enough(cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    root = tmp_path / "new"
    root.mkdir()
    with tarfile.open(root / CIFAR100.filename, "w:gz") as tar:
        tar.add(cifar100 / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(root / CIFAR100.filename))
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:9/{CIFAR100.filename}")
    images, _ = Cifar100(root=str(root), download=True, **COMMON).load("train")
    assert np.array_equal(images, noise(0, 30, 3, 32, 32).transpose(0, 2, 3, 1))


def test_half_a_file_is_named(tmp_path: Path) -> None:
    """Left by a killed download, say: torchvision raises an AssertionError or a ValueError about a tensor's size."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(struct.pack(">4I", 2051, 30, 28, 28) + b"x" * 99)
    with pytest.raises(MissingError, match=r"FashionMNIST is not in dataset\.root=.*dataset\.download=true"):
        Torchvision(dataset="FashionMNIST", root=str(tmp_path), download=False, image_size=None, **COMMON)


def test_torchvision_with_a_split_keyword(tmp_path: Path) -> None:
    """GTSRB: ppm files of many sizes, test classes in a csv; its labels are in no attribute."""
    base = tmp_path / "gtsrb" / "GTSRB"
    for number in range(3):
        for i in range(2):
            paint(base / "Training" / f"{number:05d}" / f"{i}.ppm", 80 * number, (20 + i, 24))
    rows = [{"Filename": f"{i}.ppm", "ClassId": 2 - i} for i in range(3)]
    for row in rows:
        paint(base / "Final_Test" / "Images" / row["Filename"], 80 * row["ClassId"], (30, 20))
    with (tmp_path / "gtsrb" / "GT-final_test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    dataset = Torchvision(dataset="GTSRB", root=str(tmp_path), download=False, image_size=16, **COMMON)
    images, labels = dataset.load("test")
    assert labels is not None and labels.tolist() == [2, 1, 0]
    assert (images[:, 0, 0, 0] // 80).tolist() == [2, 1, 0]
    assert (images.shape, dataset.count("train"), dataset.classes) == ((3, 16, 16, 3), 6, ["0", "1", "2"])
    with pytest.raises(ConfigError, match=r"dataset.image_size=SIZE"):
        Torchvision(dataset="GTSRB", root=str(tmp_path), download=False, image_size=None, **COMMON).load("train")


@pytest.mark.parametrize(
    ("name", "message"),
    [("FashionMINST", "did you mean FashionMNIST"), ("EuroSAT", "no train and test"), ("os", "has no dataset")],
)
def test_torchvision_names(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Torchvision(dataset=name, root=str(tmp_path), download=False, image_size=None, **COMMON)


# ----------------------------------------------------------------------------------------------------------- parquet


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_parquet(path: Path, pixels: np.ndarray, labels: list[int] | None, names: list[str] | None = None) -> None:
    """A file as `datasets` writes it: image is {bytes, path}, and the features stand in the schema's metadata."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"image": [{"bytes": encoded(p), "path": f"{i}.png"} for i, p in enumerate(pixels)]}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)


def parquet(root: Path, **options: Any) -> Parquet:
    given = {"hub": None, "image_column": "image", "label_column": "label", "image_size": None}
    return Parquet(root=str(root), **{**given, **COMMON, **options})


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_parquet(tmp_path: Path, held_out: str) -> None:
    pixels, test = noise(0, 8, 6, 6, 3), noise(1, 4, 6, 6, 3)
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", pixels[:5], [1, 0, 1, 0, 1], ["cat", "dog"])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", pixels[5:], [0, 1, 0], ["cat", "dog"])
    write_parquet(tmp_path / "data" / f"{held_out}-00000-of-00001.parquet", test, [0, 1, 0, 1], ["cat", "dog"])
    dataset = parquet(tmp_path)
    images, labels = dataset.load("train")
    assert np.array_equal(images, pixels)
    assert labels is not None and labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert (dataset.classes, dataset.why_unprobed, dataset.count("test")) == (["cat", "dog"], None, 4)
    assert np.array_equal(dataset.images("train", np.array([6, 2])), pixels[[6, 2]])
    assert parquet(tmp_path, limit=4).load("train")[1].tolist().count(0) == 2  # type: ignore[union-attr]
    assert parquet(tmp_path, image_size=4).load("test")[0].shape == (4, 4, 4, 3)
    before = dataset.identity
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", pixels[:3], [0, 1, 0], ["cat", "dog"])
    assert parquet(tmp_path).identity != before


def test_parquet_in_folders_and_without_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train" / "0000.parquet", noise(0, 3, 6, 6, 3), None)
    dataset = parquet(tmp_path)
    assert (dataset.classes, dataset.load("train")[1]) == (None, None)
    assert "no column 'label'" in str(dataset.why_unprobed)


def test_parquet_labels_that_are_no_class_numbers(tmp_path: Path) -> None:
    pixels = noise(0, 4, 6, 6, 3)
    for labels, message in (
        ([0, 1, 2**40, 1], r"holds 1099511627776 in row 2 of train \(1 row of this kind\)"),
        ([0, -1, 1, 1], r"holds -1 in row 1 of train"),
    ):
        write_parquet(tmp_path / "train-0.parquet", pixels, labels)
        with pytest.raises(ConfigError, match=message):
            parquet(tmp_path)
    write_parquet(tmp_path / "train-0.parquet", pixels, [0, 1, 2, 0], ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"holds 2 in row 2 of train .* from 0 to 1"):
        parquet(tmp_path)
    write_parquet(tmp_path / "train-0.parquet", pixels, [-1] * 4, ["cat", "dog"])
    assert (parquet(tmp_path).classes, parquet(tmp_path).labels("train")) == (None, None)
    write_parquet(tmp_path / "train-0.parquet", pixels, [0, 1, 1, 0], ["cat", "dog"])
    write_parquet(tmp_path / "test-0.parquet", pixels, [-1] * 4, ["cat", "dog"])
    hidden = parquet(tmp_path)
    assert (hidden.classes, hidden.labels("test")) == (["cat", "dog"], None)
    assert "of test holds no class" in str(hidden.why_unprobed)


@pytest.mark.parametrize(
    "text", ["rubbish", "[]", "{}", '{"info": 1}', '{"info": {"features": {"label": {"names": [1]}}}}']
)
def test_parquet_with_an_odd_description(tmp_path: Path, text: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "train-0.parquet", noise(0, 3, 6, 6, 3), [0, 2, 1])
    table: Any = pq.read_table(tmp_path / "train-0.parquet")
    pq.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "train-0.parquet")
    assert pa and parquet(tmp_path).classes == ["0", "1", "2"]


def test_the_name_of_the_root_says_no_split(tmp_path: Path) -> None:
    """Else the test images would be among those of train."""
    root = tmp_path / "train_and_test"
    write_parquet(root / "train-0.parquet", noise(0, 3, 6, 6, 3), [0, 2, 1])
    write_parquet(root / "test-0.parquet", noise(0, 2, 6, 6, 3), [0, 1])
    assert (parquet(root).count("train"), parquet(root).count("test")) == (3, 2)


def test_parquet_that_is_no_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", noise(0, 3, 6, 6, 3), [0, 2, 1])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train-9.parquet").write_text("x")
    assert parquet(tmp_path).count("train") == 3
    os.mkfifo(tmp_path / "test-0.parquet")
    with pytest.raises(MissingError, match=r"test-0\.parquet is no file"):
        parquet(tmp_path)


def test_what_is_wrong_with_parquet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.root=FOLDER"):
        Parquet(root=None, hub=None, image_column="a", label_column="b", image_size=None, **COMMON)
    with pytest.raises(MissingError, match=r"no train\*\.parquet"):
        parquet(tmp_path)
    path = tmp_path / "train-0.parquet"
    write_parquet(path, noise(0, 3, 6, 6, 3), [0, 1, 0])
    with pytest.raises(ConfigError, match=r"no column 'img' \(image, label\)"):
        parquet(tmp_path, image_column="img")
    with pytest.raises(MissingError, match=r"train-0\.parquet row 0 holds no image bytes"):
        parquet(tmp_path, image_column="label").load("train")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MissingError, match=r"train-0\.parquet cannot be read as parquet"):
        parquet(tmp_path)
    with pytest.raises(MissingError, match=r"dataset.hub=a/b could not be fetched.*put its \.parquet files"):
        parquet(tmp_path / "new", hub="a/b")


# ------------------------------------------------------------------------------------------------------ ImageNet-1K


def train_folders(base: Path) -> None:
    for number, wnid in enumerate(WNIDS):
        for i in range(3):
            paint(base / "train" / wnid / f"{wnid}_{i}.JPEG", 80 * number + i)


VAL = [2, 0, 1, 1]  # class of ILSVRC2012_val_00000001 and so on


def flat_val(base: Path) -> None:
    for i, label in enumerate(VAL, start=1):
        paint(base / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", 80 * label)


def devkit(root: Path) -> None:
    """Numbers of the devkit start at 1 and are in an order of their own."""
    from scipy.io import savemat

    data = root / imagenet.DEVKIT
    data.mkdir(parents=True)
    ids = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2}
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object), ("num_children", object)]
    rows = [(float(number), wnid, "w", "g", 0.0) for wnid, number in ids.items()]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    truth = "".join(f"{ids[WNIDS[label]]}\n" for label in VAL)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


def kaggle_csv(root: Path) -> None:
    rows = [f"ILSVRC2012_val_{i:08d},{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8 " for i, label in enumerate(VAL, 1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows[::-1]]) + "\n")


def imagenet1k(root: Path, cls: type[Imagenet1k] = Imagenet1k, **options: Any) -> Imagenet1k:
    given = {"unpack": False, "class_list": None, "image_size": 8, **COMMON}
    return cls(root=str(root), **{**given, **options})


def make_layout(root: Path, layout: str) -> None:
    base = root / imagenet.KAGGLE if layout == "kaggle" else root
    train_folders(base)
    if layout == "folders":
        for i, label in enumerate(VAL):
            paint(base / "val" / WNIDS[label] / f"{i}.JPEG", 80 * label)
        return
    flat_val(base)
    if layout == "val_labels":
        lines = [f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[label]}\n" for i, label in enumerate(VAL, 1)]
        (root / "val_labels.txt").write_text("".join(lines))
    {"kaggle": kaggle_csv, "csv": kaggle_csv, "devkit": devkit}.get(layout, lambda _: None)(root)


@pytest.mark.parametrize("layout", ["folders", "csv", "val_labels", "devkit", "kaggle"])
def test_imagenet_in_every_layout(tmp_path: Path, layout: str) -> None:
    make_layout(tmp_path, layout)
    dataset = imagenet1k(tmp_path)
    assert (dataset.classes, dataset.why_unprobed) == (WNIDS, None)
    assert (dataset.count("train"), dataset.count("test")) == (9, 4)
    images, labels = dataset.load("test")
    assert images.shape == (4, 9, 9, 3), "decoded at 256/224 of what is shown"
    assert labels is not None
    assert (images[:, 0, 0, 0] // 80).tolist() == labels.tolist()
    assert sorted(labels.tolist()) == sorted(VAL)


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_a_part_of_imagenet(tmp_path: Path, layout: str) -> None:
    make_layout(tmp_path, layout)
    chosen = tmp_path / "some.txt"
    chosen.write_text(f"# two of them\n{WNIDS[2]}  great white shark\n{WNIDS[0]}\n")
    dataset = imagenet1k(tmp_path, class_list=str(chosen))
    assert dataset.classes == [WNIDS[0], WNIDS[2]]
    assert (dataset.count("train"), dataset.count("test")) == (6, 2)
    assert dataset.labels("train").tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]
    images, labels = dataset.load("test")
    assert (images[:, 0, 0, 0] // 160).tolist() == labels.tolist()  # type: ignore[union-attr]
    assert dataset.identity != imagenet1k(tmp_path).identity


@pytest.mark.parametrize("names", [WNIDS[:1], [WNIDS[0], WNIDS[1], WNIDS[0]]], ids=["one class", "a class twice"])
def test_a_class_list_names_two_classes_each_once(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "some.txt"
    path.write_text("\n".join(names))
    with pytest.raises(ConfigError, match=r"some\.txt must name at least two classes, each once"):
        imagenet.read_class_list(path)


def test_imagenet100_is_the_usual_list(tmp_path: Path) -> None:
    make_layout(tmp_path, "folders")
    usual = imagenet.read_class_list(Path(imagenet.__file__).parent / "imagenet100.txt")
    assert (len(usual), usual == sorted(set(usual))) == (100, True)
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in usual)
    assert {"n02869837", "n01749939", "n02090622", "n01855672"} <= set(usual)  # its ends in the original order
    with pytest.raises(MissingError, match=r"lacks 100 of the 100 classes of .*imagenet100\.txt: n01558993"):
        imagenet1k(tmp_path, Imagenet100)


def test_what_is_wrong_with_imagenet_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"(?s)expected there: train/<class>.*LOC_val_solution\.csv.*Kaggle"):
        imagenet1k(tmp_path)
    (tmp_path / imagenet.TRAIN_TAR).touch()
    with pytest.raises(MissingError, match=r"dataset\.unpack=true, or in .*\n  mkdir train val && tar -xf"):
        imagenet1k(tmp_path)
    with pytest.raises(MissingError, match=r"cannot be unpacked: The archive ILSVRC2012_img_train\.tar is not the off"):
        imagenet1k(tmp_path, unpack=True)
    assert not (tmp_path / "train").exists()
    train_folders(tmp_path)
    assert "no val/" in str(imagenet1k(tmp_path).why_unprobed)
    flat_val(tmp_path)
    with pytest.raises(MissingError, match=r"nothing says its classes: no .*LOC_val_solution\.csv"):
        imagenet1k(tmp_path).count("test")
    kaggle_csv(tmp_path)
    paint(tmp_path / "val" / "ILSVRC2012_val_00000009.JPEG", 1)
    with pytest.raises(MissingError, match=r"does not say the class of ILSVRC2012_val_00000009"):
        imagenet1k(tmp_path).count("test")


def test_the_archives_are_unpacked_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.imagenet as tv

    make_layout(tmp_path / "there", "devkit")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / imagenet.TRAIN_TAR, "w") as outer:
        for folder in sorted((tmp_path / "there" / "train").iterdir()):
            inner = tmp_path / f"{folder.name}.tar"
            with tarfile.open(inner, "w") as tar:
                for path in folder.iterdir():
                    tar.add(path, path.name)
            outer.add(inner, inner.name)
    with tarfile.open(root / imagenet.VAL_TAR, "w") as tar:
        for path in (tmp_path / "there" / "val").iterdir():
            tar.add(path, path.name)
    with tarfile.open(root / imagenet.DEVKIT_TAR, "w:gz") as tar:
        tar.add(tmp_path / "there" / imagenet.DEVKIT.parent, imagenet.DEVKIT.parent.name)
    train_tar = root / imagenet.TRAIN_TAR
    monkeypatch.setitem(tv.ARCHIVE_META, "train", (train_tar.name, md5(train_tar)))
    dataset = imagenet1k(root, unpack=True)
    assert (dataset.count("train"), dataset.count("test")) == (9, 4)
    assert np.array_equal(dataset.load("test")[1], imagenet1k(tmp_path / "there").load("test")[1])
    assert not list(root.glob(".*")) and not list((root / "train").glob("*.tar"))


@pytest.mark.parametrize("name", ["imagenet1k_resnet50", "imagenet100_resnet50"])
def test_presets_of_large_images_carry_the_reference_batch(name: str) -> None:
    config = compose([f"experiment={name}"])
    assert (config.batch_size, config.probe.rela_batch_size, config.epochs) == (512, 1024, 100)
    assert config.dataset.options["image_size"] == 224
    with pytest.raises(ConfigError, match=r"batch_size=512 is larger than the subset.*Say batch_size=160"):
        lengths(config, 160)


class FromOutside(Dataset):
    """A class as somebody wrote it for an older version."""

    def source(self) -> dict[str, Any]:
        return {"dataset": "old"}


def test_a_class_from_outside_that_does_not_fit_is_named_with_what_it_lacks() -> None:
    part = Part("old", f"{__name__}.FromOutside", {"limit": None, "seed": 0, "flip": True})
    with pytest.raises(ConfigError, match=r"old: .*FromOutside does not fit .* \(limit, seed, flip\): .*test_limit"):
        instantiate(part)
    fits = instantiate(replace(part, options={**part.options, "test_limit": None}))
    with pytest.raises(ConfigError, match=r"FromOutside needs a method identity_of_images\(\); .* source\(\)"):
        _ = fits.identity
