"""Images that stay on disk, the index of a folder, and `rela data check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rela_cli import cli
from rela_cli.config.compose import compose
from rela_cli.data.batches.cache import read_labels, read_split, read_stats, write_images
from rela_cli.data.batches.loader import DiskImages, centre, in_blocks, load, sample_of
from rela_cli.data.decoding.images import decode
from rela_cli.data.files import entries
from rela_cli.data.files import index as index_module
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from rela_cli.store.entries import Entry
from rela_cli.store.files import fingerprint, read_json
from tests.promises.helpers import flip

COMMON: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True}
CPU = torch.device("cpu")


def photo(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    """A JPEG of smooth colours, so that its compression does little to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/ and val/ of two classes, 24 and 12 photographs of several sizes."""
    for i in range(36):
        part, kind = ("train" if i < 24 else "val"), "ab"[i % 2]
        photo(tmp_path / "photos" / part / kind / f"{i}.jpg", i, (40 + i, 30 + i % 7))
    return tmp_path / "photos"


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(root=str(root), **{**COMMON, "image_size": 16, "on_disk": True, **options})


def disk_images(root: Path, **options: Any) -> DiskImages:
    dataset = folder(root, **options)
    return DiskImages(dataset, "train", torch.arange(dataset.count("train")), dataset.decode_size or 0)


# ---------------------------------------------------------------------------------------------- the same as in memory


def test_what_is_read_from_disk_is_what_memory_would_hold(root: Path) -> None:
    whole = torch.from_numpy(folder(root, on_disk=False, decode_size=20).load("train")[0]).permute(0, 3, 1, 2)
    lazy = disk_images(root, decode_size=20)
    assert len(lazy) == len(whole) == 24
    assert torch.equal(lazy[torch.tensor([7, 0, 23, 7])], whole[[7, 0, 23, 7]])
    assert torch.equal(lazy[3:9], whole[3:9])
    assert torch.equal(sample_of(lazy), sample_of(whole))


@pytest.mark.parametrize("size", [1, 5, 24, 100])
def test_batches_come_in_the_callers_order(root: Path, size: int) -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(size))
    whole = disk_images(root)[:]
    for images in (disk_images(root), whole):
        found = list(load(images, order.split(size), CPU))
        assert torch.equal(torch.cat([batch for batch, _ in found]), order)
        assert torch.equal(torch.cat([pixels for _, pixels in found]), whole[order])


def test_blocks_are_those_of_memory(root: Path) -> None:
    lazy = disk_images(root)
    seen: list[int] = []

    def compute(block: torch.Tensor) -> torch.Tensor:
        seen.append(len(block))
        return block.float().mean((2, 3))

    found = [torch.cat(list(in_blocks(compute, images, 10, CPU))) for images in (lazy, lazy[:])]
    assert torch.equal(found[0], found[1])
    assert seen == [10] * 6, "the last block is padded"


def test_only_the_files_asked_for_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = ImageFolder.image

    def image(self: ImageFolder, split: str, index: int) -> np.ndarray:
        read.append(self.files[split][index])
        return original(self, split, index)

    monkeypatch.setattr(ImageFolder, "image", image)
    lazy = disk_images(root)
    list(load(lazy, torch.tensor([4, 2, 9, 20]).split(2), CPU))
    assert sorted(read) == sorted(lazy.dataset.files["train"][i] for i in (4, 2, 9, 20))  # type: ignore[attr-defined]


def test_a_broken_file_is_named_when_its_turn_comes(root: Path) -> None:
    victim = root / "train" / "a" / "odd näme ü.jpg"
    victim.write_bytes((root / "train" / "a" / "0.jpg").read_bytes()[:300])
    lazy = disk_images(root)
    assert len(lazy) == 25
    with pytest.raises(MissingError, match=r"odd näme ü\.jpg cannot be read"):
        list(load(lazy, torch.arange(25).split(5), CPU))


def test_the_cache_holds_labels_and_statistics_only(root: Path, tmp_path: Path) -> None:
    dataset = folder(root, decode_size=20, limit=10)
    entry = Entry("images", dataset.identity, tmp_path / "cache")
    entry.make(lambda place: write_images(dataset, place))
    facts, split = entry.manifest or {}, read_split(entry, "train", dataset)
    assert split is not None and split.labels is not None and isinstance(split.images, DiskImages)
    assert (facts["on_disk"], facts["statistics"], facts["decoded_size"]) == (True, "of 10 train images", 20)
    assert list(load_file(entry.folder / "train.safetensors")) == ["labels", "rows"]
    in_memory = folder(root, on_disk=False, decode_size=20, limit=10)
    pixels, labels = in_memory.load("train")
    assert np.array_equal(split.images[:].permute(0, 2, 3, 1).numpy(), pixels)
    assert labels is not None and split.labels.tolist() == labels.tolist()
    assert read_stats(entry).size == 16
    assert read_stats(entry).mean.numpy() == pytest.approx(pixels.mean((0, 1, 2)) / 255, abs=1e-6)
    assert read_labels(entry, "test") is not None and read_labels(entry, "labelled") is None
    assert in_memory.identity != dataset.identity


def test_a_run_from_disk_ends_with_the_numbers_of_one_from_memory(root: Path, tmp_path: Path) -> None:
    """Same decode, same draws: extract, train, watch and probe give the same bits."""
    words = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.decode_size=20"]
    words += ["prior=patches", "prior.patches=8", "prior.patch_size=4", "learner.width=4", "batch_size=8", "epochs=2"]
    words += ["budget=0.7", "runtime.threads=1", "runtime.block_size=10", "runtime.eval_every_epochs=1"]
    words += ["probe.protocols=[knn]", f"paths.outputs={tmp_path}/out"]
    folders = [pipeline.run(compose([*words, f"dataset.on_disk={kind}"])).folder for kind in ("true", "false")]
    assert folders[0] and folders[1] and folders[0] != folders[1]
    here, there = (load_file(place / "backbone.safetensors") for place in folders if place)
    assert all(torch.equal(here[name], there[name]) for name in here)
    numbers = [(read_json(place / "result.json") or {})["probe"]["knn"]["top1"] for place in folders if place]
    assert numbers[0] == numbers[1]


# --------------------------------------------------------------------------------------------------- sizes and defaults


def test_the_clean_view_is_the_middle() -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    assert torch.equal(centre(images, 8), images)
    assert torch.equal(centre(images, 4), images[..., 2:6, 2:6])
    assert torch.equal(centre(images, 5), images[..., 1:6, 1:6])


def test_large_sets_stay_on_disk_by_themselves(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_size = folder(root, on_disk=None)
    assert (by_size.on_disk, by_size.decode_size) == (False, 16)
    assert by_size.decoded_bytes == 36 * 3 * 16 * 16
    monkeypatch.setattr("rela_cli.data.encoded.MEMORY_LIMIT", by_size.decoded_bytes - 1)
    assert (folder(root, on_disk=None).on_disk, folder(root, on_disk=None).decode_size) == (True, 18)
    assert folder(root, on_disk=False).decode_size == 16
    assert folder(root, on_disk=None, image_size=224).decode_size == 256
    with pytest.raises(ConfigError, match=r"keeps its images on disk.*say dataset\.image_size=SIZE"):
        _ = folder(root, on_disk=True, image_size=None).identity
    with pytest.raises(ConfigError, match=r"dataset\.decode_size=8 must be at least dataset\.image_size=16"):
        folder(root, decode_size=8)


def test_a_reduced_jpeg_decode_stays_right(tmp_path: Path) -> None:
    """A photograph far larger than it is shown is decoded at a fraction of its size; the result hardly moves."""
    path = photo(tmp_path / "large.jpg", 3, (640, 480))
    found = decode(path, 48).astype(float)
    with Image.open(path) as image:
        whole = np.asarray(image.crop((80, 0, 560, 480)).resize((48, 48), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(found - whole).max() <= 3
    with Image.open(path) as image:
        image.draft(None, (192, 192))
        assert image.size == (320, 240), "which is what was read"


# ------------------------------------------------------------------------------------------------------------ the index


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that were listed, with every folder large enough to be remembered and old enough to be trusted."""
    monkeypatch.setattr(index_module, "REMEMBERED", 1)
    monkeypatch.setattr(entries, "SETTLED_NS", -1)
    listed: list[str] = []
    original = index_module.list_folder

    def list_folder(path: Path) -> index_module.FolderListing:
        listed.append(path.name)
        return original(path)

    monkeypatch.setattr(index_module, "list_folder", list_folder)
    return listed


def test_a_remembered_folder_is_not_walked_again(root: Path, tmp_path: Path, remembered: list[str]) -> None:
    first = folder(root, cache=tmp_path)
    assert first.count("train") == 24
    assert sorted(remembered) == ["a", "a", "b", "b", "train", "val"]
    remembered.clear()
    again = folder(root, cache=tmp_path)
    assert (again.count("train"), again.identity, remembered) == (24, first.identity, [])
    assert again.files == first.files == folder(root).files


def test_a_folder_that_changed_is_listed_again_alone(root: Path, tmp_path: Path, remembered: list[str]) -> None:
    before = folder(root, cache=tmp_path).identity
    photo(root / "train" / "b" / "new.jpg", 99)
    remembered.clear()
    more = folder(root, cache=tmp_path)
    assert (more.count("train"), remembered) == (25, ["b"])
    assert more.identity != before
    assert more.identity == folder(root).identity, "the same as a walk of everything"
    (root / "train" / "b" / "new.jpg").unlink()
    (root / "val" / "a" / "deep").mkdir()
    photo(root / "val" / "a" / "deep" / "x.jpg", 98)
    assert folder(root, cache=tmp_path).identity == folder(root).identity


def test_a_file_rewritten_in_place_is_seen_by_a_fresh_look_only(
    root: Path, tmp_path: Path, remembered: list[str]
) -> None:
    before = folder(root, cache=tmp_path).identity
    victim = root / "train" / "a" / "0.jpg"
    victim.write_bytes(victim.read_bytes() + b"\0")
    assert folder(root, cache=tmp_path).identity == before, "no folder changed: stated in data/index.py"
    assert folder(root, cache=tmp_path).index(afresh=True).fingerprint != before["listing"]
    assert folder(root, cache=tmp_path).identity == folder(root).identity != before, "and later starts go by it"


def test_small_folders_are_listed_at_each_start(root: Path, tmp_path: Path) -> None:
    before = folder(root, cache=tmp_path).identity
    victim = root / "train" / "a" / "0.jpg"
    victim.write_bytes(victim.read_bytes() + b"\0")
    assert folder(root, cache=tmp_path).identity != before
    assert not (tmp_path / "index").exists()


def test_a_folder_that_has_just_changed_is_not_trusted(root: Path) -> None:
    assert index_module.list_folder(root / "train" / "a").time == -1
    os.utime(root / "train" / "a", (1e9, 1e9))
    assert index_module.list_folder(root / "train" / "a").time == 10**18


@pytest.mark.parametrize("sizes", [[(40, 30), (64, 48)], [(50, 40), (50, 40)]])
def test_a_size_is_asked_for_before_a_run_has_a_folder(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    for i in range(20):
        photo(tmp_path / "photos" / ("train" if i < 16 else "test") / "ab"[i % 2] / f"{i}.jpg", i, sizes[i // 19])
    words = ["dataset=image_folder", f"dataset.root={tmp_path}/photos", f"paths.outputs={tmp_path}/out", "batch_size=4"]
    words += ["prior=random", "prior.width=4", "learner.width=4"]
    with pytest.raises(ConfigError, match=r"say dataset\.image_size=SIZE .* such as dataset\.image_size=32"):
        pipeline.run(compose(words))
    assert not (tmp_path / "out").exists()
    assert Run(compose([*words, "dataset.image_size=16"])).shown_size == 16


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folders": {}}'])
def test_a_broken_index_is_made_again(root: Path, tmp_path: Path, remembered: list[str], content: str) -> None:
    before = folder(root, cache=tmp_path).identity
    path = next((tmp_path / "index").glob("*/index.json"))
    path.write_text(content)
    assert folder(root, cache=tmp_path).identity == before


@pytest.mark.parametrize("name", ["text", "ends", "numbers"])
@pytest.mark.parametrize("fault", ["gone", "short", "not an array"])
def test_an_index_without_its_arrays_is_made_again(
    root: Path, tmp_path: Path, remembered: list[str], name: str, fault: str
) -> None:
    before = folder(root, cache=tmp_path).identity
    path = next((tmp_path / "index").glob(f"*/*.{name}.npy"))
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if fault == "short" else b"x")
    remembered.clear()
    assert folder(root, cache=tmp_path).identity == before
    assert remembered, "walked again"


@pytest.mark.parametrize("name", ["text", "ends", "numbers", "json"])
def test_a_bit_in_an_index_is_noticed(
    root: Path, tmp_path: Path, remembered: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes and times stay; a name that became another would be another image with another label."""
    before = folder(root, cache=tmp_path)
    facts = (before.identity, list(before.files["train"]))
    pattern = "*/index.json" if name == "json" else f"*/*.{name}.npy"
    flip(next((tmp_path / "index").glob(pattern)), -9)
    capsys.readouterr()
    again = folder(root, cache=tmp_path)
    assert (again.identity, list(again.files["train"])) == facts
    assert "is damaged" in capsys.readouterr().err
    assert folder(root, cache=tmp_path).identity == facts[0]
    assert "is damaged" not in capsys.readouterr().err, "it was written anew"


def test_what_is_left_out_is_remembered(root: Path, tmp_path: Path, remembered: list[str]) -> None:
    (root / "train" / "a" / "notes.txt").write_text("x")
    first = folder(root, cache=tmp_path).index()
    again = folder(root, cache=tmp_path).index()
    assert again.left() == first.left() == {"other": [1, "train/a/notes.txt"]}


def test_the_remembered_paths_are_mapped(root: Path, tmp_path: Path, remembered: list[str]) -> None:
    folder(root, cache=tmp_path).count("train")
    paths = folder(root, cache=tmp_path).files["train"]
    assert isinstance(paths.text, np.memmap) and isinstance(paths.ends, np.memmap)
    everything = list(paths)
    assert [paths[i] for i in range(len(paths))] == everything == sorted(everything)
    assert (paths[-1], list(paths[2:5])) == (everything[-1], everything[2:5])
    with pytest.raises(IndexError):
        _ = paths[len(paths)]
    assert list(paths.take(np.array([5, 3])).take(np.array([1]))) == [everything[3]]


NAMES = ["a", "a-x", "a.b", "a0", "b", "ä", "Z", "a b"]  # "-", "." and " " come before a slash, digits after it


@pytest.mark.parametrize("seed", range(6))
def test_files_stand_in_the_order_of_their_paths(tmp_path: Path, remembered: list[str], seed: int) -> None:
    """Folders and files side by side, names that are parts of others: walked, remembered, or one folder anew."""
    random = np.random.RandomState(seed)
    root, paths = tmp_path / "tree", set[str]()
    for _ in range(60):
        depth = random.randint(0, 4)
        path = "/".join([*random.choice(NAMES, depth), f"{random.choice(NAMES)}{random.randint(9)}.png"])
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * random.randint(50))
        paths.add(path)

    def listed(cache: Path | None) -> index_module.Index:
        return index_module.list_images(root, [""], None, cache)

    def facts(found: index_module.Index) -> tuple[list[str], str]:
        return list(found.lists[0]), found.fingerprint

    first = listed(tmp_path)
    assert list(first.lists[0]) == sorted(paths)
    rows = [[p, (root / p).stat().st_size, (root / p).stat().st_mtime_ns] for p in sorted(paths)]
    assert first.fingerprint == fingerprint({"files": rows})
    assert first.filled("") == {path.partition("/")[0] for path in paths if "/" in path}
    remembered.clear()
    assert facts(listed(tmp_path)) == facts(first) and remembered == []
    new = (root / sorted(paths)[seed * 7]).parent / "a-.png"
    new.write_bytes(b"new")
    again = listed(tmp_path)
    assert facts(again) == facts(listed(None))
    assert list(again.lists[0]) == sorted({*paths, str(new.relative_to(root))})
    assert len(list((tmp_path / "index").glob("*/*.npy"))) == 3, "the earlier one's arrays are gone"


# ------------------------------------------------------------------------------------------------------ rela data check


def test_data_check(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(root.parent)
    words = ["data", "check", "dataset=image_folder", f"dataset.root={root}"]
    Image.new("L", (10, 50)).save(root / "train" / "a" / "gray.png")
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for text in ("25 images, 2 classes of 12 to 13", "RGB 24, L 1", "10x30 / ", "none of 37", "12 images"):
        assert text in out
    (root / "train" / "a" / "bad\n  broken       none of 37.jpg").write_bytes(b"<html>")
    (root / "train" / "empty\n  broken       none").mkdir()
    assert cli.main(words) == 3
    done = capsys.readouterr()
    assert r"a/bad\n  broken       none of 37.jpg cannot be read as an image" in done.err, "a name forges no line"
    assert r"class folders without an image: empty\n  broken       none" in done.out
    assert "NOT those of the check of" in done.out
    report = read_json(next((root.parent / "outputs" / "cache" / "index").glob("*/check.json"))) or {}
    assert report["splits"]["train"]["images_of_class"] == {"a": 14, "b": 12}
    assert len(report["broken"]) == 1
    assert cli.main(["data", "chekc"]) == 2


def test_data_check_of_pixels_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "check", "dataset=digits"]) == 0
    out = capsys.readouterr().out
    assert "1437 images, 10 classes" in out and "8x8 / 8x8 / 8x8" in out
    assert cli.main(["data", "check", "dataset=digits"]) == 0
    assert "the same as the check of" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- the real photographs


def test_the_photographs(tmp_path: Path) -> None:
    """160 ImageNet photographs, 23 of them grayscale ($RELA_DATA)."""
    import tarfile

    data = Path(os.environ.get("RELA_DATA", "nowhere")) / "data" / "imagenet-sample.tar"
    if not data.is_file():
        pytest.skip("RELA_DATA is not set: no photographs")
    with tarfile.open(data) as tar:
        tar.extractall(tmp_path, filter="data")
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    pixels = [decode(path, 64) for path in files]
    gray = sum(Image.open(path).mode == "L" for path in files)
    colourless = sum(bool((p == p[..., :1]).all()) for p in pixels)
    assert (len(files), gray) == (160, 23)
    assert colourless >= 23
    assert all(p.shape == (64, 64, 3) for p in pixels)
