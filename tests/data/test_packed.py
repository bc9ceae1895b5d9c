"""`rela data pack` and dataset=packed: the same images, from a few large files, and no bytes but those asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rela_cli import cli
from rela_cli.commands.data.packing import Encoding, Packer
from rela_cli.config.compose import compose
from rela_cli.data.base import Dataset
from rela_cli.data.batches.loader import DiskImages, load
from rela_cli.data.batches.subset import epoch_indices
from rela_cli.data.datasets import Digits
from rela_cli.data.files import storage
from rela_cli.data.files.storage import RemoteFolder, storage_of
from rela_cli.data.packed import Packed
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.pipeline import pipeline
from rela_cli.store.files import read_json
from tests.conftest import NO_TORCH, ROOT, Rela
from tests.data.test_encoded import COMMON, folder, photo, root
from tests.promises.helpers import flip

__all__ = ["root"]
CPU = torch.device("cpu")


def pack(dataset: Dataset, to: Path | str, shard_bytes: int = 5000, encoding: Encoding | None = None) -> dict[str, Any]:
    return Packer(dataset, storage_of(str(to)), encoding or Encoding(), shard_bytes).run()


def packed(to: Path | str, **options: Any) -> Packed:
    return Packed(root=str(to), **{**COMMON, "image_size": 16, "on_disk": True, **options})


def noise(path: Path, seed: int, side: int = 176) -> Path:
    """A JPEG of 30 kB and more, as photographs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=95)
    return path


# ------------------------------------------------------------------------------------------------------ the same images


def test_a_pack_holds_the_files_bytes_in_order(root: Path, tmp_path: Path) -> None:
    source, to = folder(root), tmp_path / "pack"
    facts = pack(source, to)
    bytes_of = b"".join(path.read_bytes() for path in source.encoded_images("train"))
    shards = facts["splits"]["train"]["shards"]
    assert len(shards) > 2
    assert b"".join((to / shard["name"]).read_bytes() for shard in shards) == bytes_of
    assert sorted(path.suffix for path in to.iterdir() if path.suffix != ".bin") == [".json", *[".npy"] * 4]
    starts = np.load(to / "train.starts.npy")
    assert (starts.dtype, starts[0], starts[-1], len(starts)) == (np.int64, 0, len(bytes_of), 25)


@pytest.mark.parametrize("on_disk", [True, False])
def test_it_is_read_as_the_folder_would_be(root: Path, tmp_path: Path, on_disk: bool) -> None:
    pack(folder(root), tmp_path / "pack")
    one, other = folder(root, on_disk=on_disk), packed(tmp_path / "pack", on_disk=on_disk)
    assert (other.classes, other.splits, other.why_unprobed) == (one.classes, one.splits, None)
    for split in one.splits:
        assert other.count(split) == one.count(split)
        here, there = one.load(split), other.load(split)
        assert np.array_equal(here[0], there[0])
        assert here[1] is not None and there[1] is not None and np.array_equal(here[1], there[1])
        assert there[1].dtype == np.int64
    assert isinstance(other.starts["train"], np.memmap), "mapped, not read"


def test_a_bit_in_the_labels_of_a_pack_is_noticed(root: Path, tmp_path: Path) -> None:
    pack(folder(root), tmp_path / "pack")
    flip(tmp_path / "pack" / "train.labels.npy", -4)
    with pytest.raises(MissingError, match=r"train\.labels\.npy does not hold the labels that were packed"):
        packed(tmp_path / "pack").labels("train")


def test_a_run_on_a_pack_ends_with_the_numbers_of_one_on_the_folder(root: Path, tmp_path: Path) -> None:
    pack(folder(root), tmp_path / "pack")
    words = ["prior=patches", "prior.patches=8", "prior.patch_size=4", "learner.width=4", "batch_size=8", "epochs=2"]
    words += ["budget=0.7", "runtime.threads=1", "probe.protocols=[knn]", f"paths.outputs={tmp_path}/out"]
    words += ["dataset.on_disk=true", "dataset.image_size=16"]
    places = {"image_folder": root, "packed": tmp_path / "pack"}
    runs = [pipeline.run(compose([*words, f"dataset={k}", f"dataset.root={p}"])).folder for k, p in places.items()]
    assert runs[0] and runs[1] and runs[0] != runs[1]
    here, there = (load_file(run / "backbone.safetensors") for run in runs if run)
    assert all(torch.equal(here[name], there[name]) for name in here)
    numbers = [(read_json(run / "result.json") or {})["probe"]["knn"]["top1"] for run in runs if run]
    assert numbers[0] == numbers[1]


def test_pixels_are_packed_without_loss_and_limits_are_kept(tmp_path: Path) -> None:
    digits = Digits(**{**COMMON, "limit": 50, "test_limit": 20})
    pack(digits, tmp_path / "pack")
    found = packed(tmp_path / "pack", image_size=None, on_disk=False)
    assert (found.count("train"), found.count("test")) == (50, 20)
    for one, other in zip(digits.load("train"), found.load("train"), strict=True):
        assert one is not None and other is not None and np.array_equal(one, other)


def test_images_without_classes(tmp_path: Path) -> None:
    for i in range(5):
        photo(tmp_path / "flat" / f"{i}.jpg", i)
    pack(folder(tmp_path / "flat"), tmp_path / "pack")
    found = packed(tmp_path / "pack")
    assert (found.count("train"), found.count("test"), found.labels("train"), found.classes) == (5, 0, None, None)
    assert found.why_unprobed and "has no class folders" in found.why_unprobed


def test_encoded_anew(root: Path, tmp_path: Path) -> None:
    """Size and quality are the file's own; the fingerprint knows of them."""
    facts = pack(folder(root), tmp_path / "small", encoding=Encoding(24, 80))
    assert facts["encoding"] == {"format": "jpeg", "size": 24, "quality": 80}
    found = packed(tmp_path / "small", decode_size=24)
    image = Image.open(BytesIO(found.blobs("train", np.array([3]))[0].data))
    assert (image.format, image.size) == ("JPEG", (24, 24))
    again = Image.fromarray(folder(root, decode_size=24).image("train", 3))
    again.save(file := BytesIO(), "JPEG", quality=80, subsampling=0)
    assert file.getvalue() == found.blobs("train", np.array([3]))[0].data
    pack(folder(root), tmp_path / "as_they_were")
    others = [packed(tmp_path / "as_they_were", decode_size=24)]
    for quality in (None, 81):
        pack(folder(root), tmp_path / f"q{quality}", encoding=Encoding(24, quality))
        others.append(packed(tmp_path / f"q{quality}", decode_size=24))
    assert len({json.dumps(dataset.identity) for dataset in (found, *others)}) == 4
    assert "encoding" in found.identity


# --------------------------------------------------------------------------------------------------------- bytes read


def read_so_far() -> int:
    """Bytes that this process has asked the kernel's files for, by the kernel's own count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_an_epoch_at_a_tenth_reads_a_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images of 30 kB and more: the bytes asked of the files are a tenth of all, within 15 %."""
    for i in range(200):
        noise(tmp_path / "photos" / "train" / "ab"[i % 2] / f"{i}.jpg", i)
    facts = pack(folder(tmp_path / "photos"), tmp_path / "pack", 2_000_000)
    total = sum(shard["bytes"] for shard in facts["splits"]["train"]["shards"])
    assert total > 200 * 30_000
    asked: list[int] = []
    pread = os.pread
    monkeypatch.setattr(storage.os, "pread", lambda f, n, at: asked.append(n) or pread(f, n, at))
    dataset = packed(tmp_path / "pack")
    images = DiskImages(dataset, "train", torch.arange(200), 18)
    images[:1]
    for epoch in range(3):
        asked.clear()
        before = read_so_far()
        batches = epoch_indices(0, epoch, 200, 20).split(8)
        seen = [batch for batch, _ in load(images, batches, CPU)]
        by_the_kernel = read_so_far() - before
        assert sum(map(len, seen)) == len(asked) == 20
        assert abs(sum(asked) - total / 10) < 0.15 * total / 10
        assert abs(by_the_kernel - total / 10) < 0.15 * total / 10


def test_many_files_are_opened_one_by_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "KEPT_OPEN", 2)
    pack(folder(root), tmp_path / "pack", 100)
    found = packed(tmp_path / "pack")
    assert np.array_equal(found.load("train")[0], folder(root).load("train")[0])
    assert len(found.place.files) == 2  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------- whole or not there


def rela_pack(root: Path, to: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["data", "pack", "dataset=image_folder", f"dataset.root={root}", "dataset.image_size=16", f"to={to}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    code = "import sys, rela_cli.commands.data.pack as p; p.MB = 5\n"
    code += "from rela_cli.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words, "shard_mb=1000"]
    return subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "point", ["train.after_write:4", "train.after_replace:5", "test.after_write:2", "pack.before_write"]
)
def test_a_pack_that_was_killed_goes_on(root: Path, tmp_path: Path, point: str) -> None:
    to = tmp_path / "pack"
    killed = rela_pack(root, to, RELA_FAULT=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(MissingError, match="a pack that is not finished"):
        packed(to)
    before = {p.name: p.stat().st_mtime_ns for p in to.glob("*.bin") if (to / f"{p.stem}.part.npy").exists()}
    assert before
    done = rela_pack(root, to)
    assert done.returncode == 0, done.stderr
    assert f"to use it    rela train dataset=packed dataset.root={to} dataset.image_size=16" in done.stdout
    assert {name: (to / name).stat().st_mtime_ns for name in before} == before, "whole files are not written again"
    reference = pack(folder(root), tmp_path / "reference", 5000)
    assert (read_json(to / "pack.json") or {})["splits"] == reference["splits"]
    assert sorted(p.name for p in to.iterdir() if p.name != ".lock") == sorted(
        p.name for p in (tmp_path / "reference").iterdir()
    )


def test_another_pack_is_not_written_over(root: Path, tmp_path: Path) -> None:
    pack(folder(root), tmp_path / "pack")
    assert pack(folder(root), tmp_path / "pack")["splits"], "the same again is found"
    with pytest.raises(RelaError, match=r"holds another pack \(its encoding differ\).*another --to"):
        pack(folder(root), tmp_path / "pack", encoding=Encoding(24))


def test_what_is_not_whole_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="holds no pack: `rela data pack"):
        packed(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"dataset=packed needs dataset\.root"):
        packed("")
    pack(folder(root), tmp_path / "pack")
    victim = tmp_path / "pack" / "train-00001.bin"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    with pytest.raises(MissingError, match=r"train-00001\.bin has \d+ of \d+ bytes"):
        packed(tmp_path / "pack")
    victim.unlink()
    with pytest.raises(MissingError, match=r"train-00001\.bin is gone"):
        packed(tmp_path / "pack")
    victim.write_bytes(b"x" * len(whole))
    with pytest.raises(MissingError, match=r"image \d+ of train in .*pack cannot be read as an image"):
        packed(tmp_path / "pack").load("train")
    (tmp_path / "pack" / "pack.json").write_text("{")
    with pytest.raises(MissingError, match=r"pack\.json cannot be read"):
        packed(tmp_path / "pack")


def test_a_pack_that_is_cut_short_while_it_is_in_use_is_named(root: Path, tmp_path: Path) -> None:
    pack(folder(root), tmp_path / "pack")
    opened = packed(tmp_path / "pack")
    os.truncate(tmp_path / "pack" / "train-00000.bin", 10)
    with pytest.raises(MissingError, match=r"image 0 of train in .*pack holds 10 of \d+ bytes: the pack was cut short"):
        opened.images("train", np.array([0]))


def test_check_compares_a_pack_with_what_was_packed(
    rela: Rela, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(folder(root), tmp_path / "pack")
    assert cli.main(["data", "check", "dataset=image_folder", f"dataset.root={root}"]) == 0
    of_folder = capsys.readouterr().out
    words = ("data", "check", "dataset=packed", f"dataset.root={tmp_path / 'pack'}")
    of_pack = rela(*words, stub=NO_TORCH)
    assert of_pack.returncode == 0, of_pack.stderr
    contents = [out.partition("contents ")[2].split()[0].rstrip(",") for out in (of_folder, of_pack.stdout)]
    assert contents[0] == contents[1], "the same bytes"
    victim = tmp_path / "pack" / "train-00000.bin"
    data = bytearray(victim.read_bytes())
    data[700] ^= 1
    victim.write_bytes(data)
    assert cli.main([*words]) == 3
    assert "train does not hold the images that were packed" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- the command, fsspec


def test_the_command(rela: Rela) -> None:
    done = rela("data", "pack", "dataset=digits", "to=pack", "dataset.limit=30", stub=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert "train        30 images in 1 file," in done.stdout
    assert "dataset=packed dataset.root=pack dataset.flip=false" in done.stdout
    assert "already there" not in done.stdout
    done = rela("data", "pack", "dataset=digits", "to=pack", "dataset.limit=30")
    assert (done.returncode, "already there: pack" in done.stdout) == (0, True), done.stderr
    done = rela("data", "pack", "dataset=digits", "to=other", "dataset.limit=30", "size=8")
    assert "encoded anew as JPEGs of quality 90, 8x8 pixels" in done.stdout
    done = rela("data", "pack", "dataset=digits", "size=2", "quality=high")
    assert done.returncode == 2
    for text in ("say where to: --to FOLDER", "--size=2 must be a whole number from 4", "--quality=high must be"):
        assert text in done.stderr
    assert "did you mean pack?" in rela("data", "pakc").stderr
    assert "rela data pack --help" in rela("data", "--help").stdout


def test_a_pack_at_an_address(root: Path, tmp_path: Path) -> None:
    """fsspec's memory: one request a batch, the index copied once, the same pixels."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    to = f"memory://packs/{tmp_path.name}"
    pack(folder(root), to)
    dataset = packed(to, cache=tmp_path / "cache")
    assert isinstance(dataset.place, RemoteFolder)
    asked: list[list[int]] = []
    cat_ranges = system.cat_ranges

    def counted(paths: list[str], starts: list[int], ends: list[int], **options: Any) -> Any:
        asked.append([end - start for start, end in zip(starts, ends, strict=True)])
        return cat_ranges(paths, starts, ends, **options)

    dataset.place.system = type("Counted", (), {"cat_ranges": staticmethod(counted), "get_file": system.get_file})
    images = DiskImages(dataset, "train", torch.arange(24), 18)
    reference = DiskImages(folder(root), "train", torch.arange(24), 18)
    rows = torch.tensor([3, 20, 7])
    assert torch.equal(images[rows], reference[rows])
    sizes = [len(path.read_bytes()) for path in folder(root).encoded_images("train")]
    assert asked == [[sizes[3], sizes[20], sizes[7]]]
    assert len(list((tmp_path / "cache" / "index").glob("*/train.starts.npy"))) == 1
    assert (dataset.hash, dataset.identity) == (packed(to).hash, packed(to).identity)


def test_an_address_without_fsspec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ConfigError, match=r"pip install 'rela-cli\[remote\]'"):
        packed("s3://bucket/pack")


def test_an_address_of_no_known_kind() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigError, match="nosuch://x is no address that fsspec knows"):
        packed("nosuch://x")
