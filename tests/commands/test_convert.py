"""`rela convert`, `rela data check FOLDER` and dataset=efficient: the run that the cache gives, from a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rela_cli import cli
from rela_cli.commands.convert.writer import Writer
from rela_cli.config.compose import compose
from rela_cli.data.efficient.dataset import Efficient
from rela_cli.data.efficient.folder import SHARD_COLUMNS, EfficientFolder
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline.run import Run
from rela_cli.store.files import file_sha256
from tests.data.test_encoded import photo
from tests.promises.harness import call, spawn
from tests.promises.helpers import flip

PRIOR = ("prior=random", "prior.width=4", "transport.max_dim=16", "batch_size=4")
RUN = ("learner.width=4", "epochs=2", "batch_size=4", "budget=0.5", "runtime=cpu", "runtime.threads=1", "switch=fixed",
       "switch.at=0.5", "probe.protocols=[knn]", "probe.knn_k=3", "runtime.eval_every_epochs=0")  # fmt: skip
PIXELS = ("dataset=fake", "dataset.n=40", "dataset.n_test=12", "dataset.size=8")


Screen = pytest.CaptureFixture[str]


def photos(root: Path) -> tuple[str, ...]:
    """A dataset of 20 of 24 train images that stay on disk, and 12 test images."""
    for i in range(36):
        part, kind = ("train" if i < 24 else "val"), "ab"[i % 2]
        photo(root / part / kind / f"{i:02d} é.jpg", i, (40 + i, 30 + i % 7))
    return ("dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", "dataset.on_disk=true",
            "dataset.limit=20", "dataset.flip=false")  # fmt: skip


def rela(*words: str) -> int:
    return cli.main([*words])


def backbone(outputs: Path) -> dict[str, torch.Tensor]:
    return load_file(outputs / "runs" / "latest" / "backbone.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def hashes(folder: Path) -> dict[str, str]:
    own = ("efficient.json", ".lock")
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file() and p.name not in own}


# ------------------------------------------------------------------------------------------------------ the same run


@pytest.mark.parametrize("kind", ["pixels copy", "photos copy", "photos link", "photos none"])
def test_the_run_is_the_one_that_the_cache_gives(kind: str, tmp_path: Path, capsys: Screen) -> None:
    what, images = kind.split()
    data = PIXELS if what == "pixels" else photos(tmp_path / "photos")
    outputs = tmp_path / "outputs"
    assert rela("train", *data, *PRIOR, *RUN, f"--outputs={outputs}") == 0
    made = ("convert", *data, *PRIOR, "--to", str(tmp_path / "eff"), "--images", images, "--shard-mb", "1")
    assert rela(*made, f"--outputs={outputs}") == 0
    assert rela("train", "dataset=efficient", f"dataset.root={tmp_path / 'eff'}", *RUN, f"--outputs={outputs}",
                *([f"dataset.images={tmp_path / 'photos'}"] if kind == "photos none" else [])) == 0  # fmt: skip
    if what == "pixels":  # one name, one run: nothing is trained again
        assert "nothing to do" in capsys.readouterr().out

    moved = shutil.move(tmp_path / "eff", tmp_path / "elsewhere")
    words = ["dataset=efficient", f"dataset.root={moved}", *RUN, f"--outputs={tmp_path / 'new'}"]
    if kind == "photos copy":
        shutil.rmtree(tmp_path / "photos")
    if kind == "photos none":
        assert rela("train", *words) == 3
        assert "say dataset.images=FOLDER, where those of photos (dataset=image_folder) lie" in capsys.readouterr().err
        words.append(f"dataset.images={shutil.move(tmp_path / 'photos', tmp_path / 'pictures')}")
    assert rela("train", *words) == 0
    assert_same(backbone(outputs), backbone(tmp_path / "new"))
    one, other = (json.loads((o / "runs/latest/result.json").read_text()) for o in (outputs, tmp_path / "new"))
    same = ("prior", "transport", "train_samples", "labels_seen", "prior_labels_seen", "called", "flops")
    assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert other["baselines"]["prior_alone"]["knn"]["top1"] == one["baselines"]["prior_alone"]["knn"]["top1"]
    assert (tmp_path / "new" / "cache" / "features").exists() is False


def test_light_views_come_along(tmp_path: Path, capsys: Screen) -> None:
    """The run of the cache with three views, from a folder; other views than these are refused."""
    views, folder, outputs = "extract.views=3", tmp_path / "eff", f"--outputs={tmp_path / 'outputs'}"
    assert rela("train", *PIXELS, *PRIOR, *RUN, views, outputs) == 0
    assert rela("convert", *PIXELS, *PRIOR, views, f"--to={folder}", "--images=copy", "--shard-mb=1", outputs) == 0
    assert "3 light views of each train image" in capsys.readouterr().out
    assert rela("data", "check", str(folder)) == 0
    words = ("train", "dataset=efficient", f"dataset.root={shutil.move(folder, tmp_path / 'away')}", *RUN)
    assert rela(*words, views, f"--outputs={tmp_path / 'new'}") == 0
    assert_same(backbone(tmp_path / "outputs"), backbone(tmp_path / "new"))
    one, other = (json.loads((tmp_path / o / "runs/latest/result.json").read_text()) for o in ("outputs", "new"))
    assert one["fingerprint"] == other["fingerprint"] and one["flops"] == other["flops"]
    assert one["seconds"]["extract"] == other["seconds"]["extract"]
    capsys.readouterr()
    assert rela(*words, "extract.views=2", f"--outputs={tmp_path / 'new'}") == 2
    assert "holds 3 light views of each image; say extract.views=3" in capsys.readouterr().err
    assert rela(*words, views, "matching.view.crop_scale=[0.3,1.0]", f"--outputs={tmp_path / 'new'}") == 2
    assert "matching.view cuts other views" in capsys.readouterr().err
    flip(tmp_path / "away" / "train-views-00000-of-00001.safetensors")
    assert call(tmp_path, "transport", *words[1:], views, f"--outputs={tmp_path / 'newer'}") == 3
    assert "train-views-00000-of-00001.safetensors" in (tmp_path / "err").read_text()


def test_the_plain_method_trains_on_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "eff"
    assert rela("convert", *PIXELS, *PRIOR, f"--to={folder}", "--images=copy", f"--outputs={tmp_path / 'a'}") == 0
    assert rela("train", *PIXELS, "prior=none", *RUN, f"--outputs={tmp_path / 'b'}") == 0
    words = ("dataset=efficient", f"dataset.root={folder}", "prior=none", *RUN)
    assert rela("train", *words, f"--outputs={tmp_path / 'c'}") == 0
    assert_same(backbone(tmp_path / "b"), backbone(tmp_path / "c"))


# ---------------------------------------------------------------------------------------------- one folder, looked at


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """An efficient dataset of photographs in shards of five samples, with the images; and the run behind it."""
    place = tmp_path_factory.mktemp("efficient")
    data = photos(place / "photos")
    assert rela("transport", *data, *PRIOR, "runtime=cpu", f"--outputs={place / 'outputs'}") == 0
    run = Run(compose([*data, *PRIOR, "runtime=cpu", f"paths.outputs={place / 'outputs'}"]))
    (place / "eff").mkdir()
    Writer(run, place / "eff", "copy", 5 * (16 * 2 + 48)).run()
    return place / "eff", run


def test_a_shard_says_what_each_sample_is(made: tuple[Path, Run]) -> None:
    folder, run = EfficientFolder(made[0]), made[1]
    rows, labels = run.dataset.choose("train")
    files = [list(run.dataset.encoded_images("train"))[row] for row in rows]
    assert len(folder.shards("train")) == 4
    assert set(load_file(folder.shards("train")[0])) == set(SHARD_COLUMNS)
    assert folder.names("train") == [str(Path(path).relative_to(made[0].parent / "photos")) for path in files]
    assert np.array_equal(folder.column("train", "row"), rows)
    assert labels is not None and np.array_equal(folder.column("train", "label"), labels)
    assert [row.tobytes().hex() for row in folder.column("train", "sha256")] == [file_sha256(path) for path in files]
    for split in ("train", "test"):
        wanted = load_file(run.targets.folder / f"{split}.safetensors")["targets"]
        assert np.array_equal(folder.column(split, "targets"), wanted.numpy())


def test_the_card_says_whose_targets_they_are(made: tuple[Path, Run]) -> None:
    text = (made[0] / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])["rela"]
    assert front["prior"]["name"] == "random" and front["prior"]["labels_seen"] == []
    assert front["preprocessing"] == {**front["preprocessing"], "image_size": None, "channels": "rgb"}
    assert front["transport"]["name"] == "whitening" and front["width"] == 16
    assert front["samples"] == {"train": 20, "test": 12}
    assert front["cost"]["extract"]["flops"] > 0
    files = hashes(made[0])
    assert front["files"] == {name: found for name, found in files.items() if name != "README.md"}
    assert str(made[0].parent) not in text  # it may be published


def test_the_images_are_those_of_the_dataset(made: tuple[Path, Run]) -> None:
    rows = made[1].dataset.choose("train")[0]
    wanted = made[1].dataset.images("train", rows[[3, 17]])
    assert np.array_equal(Efficient(str(made[0])).images("train", np.array([3, 17])), wanted)
    linked = Efficient(str(made[0]), images=str(made[0].parent / "photos"))
    assert np.array_equal(linked.images("train", np.array([3, 17])), wanted)


def test_every_flipped_byte_is_named(made: tuple[Path, Run], tmp_path: Path, capsys: Screen) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "eff"))
    assert rela("data", "check", str(folder)) == 0
    names = sorted({*hashes(folder), "efficient.json"})
    assert {"train-00003-of-00004.safetensors", "transport.safetensors", "images/train-00000.bin"} < {*names}
    for name in names:
        before = (folder / name).read_bytes()
        flip(folder / name)
        capsys.readouterr()
        assert rela("data", "check", str(folder)) == 3
        assert str(folder / name) in capsys.readouterr().err
        (folder / name).write_bytes(before)


def test_damaged_targets_train_nothing(made: tuple[Path, Run], tmp_path: Path, capsys: Screen) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "eff"))
    flip(folder / "train-00001-of-00004.safetensors")
    assert rela("train", "dataset=efficient", f"dataset.root={folder}", *RUN, f"--outputs={tmp_path / 'out'}") == 3
    assert "train-00001-of-00004.safetensors does not hold what was written" in capsys.readouterr().err
    (folder / "train-00001-of-00004.safetensors").unlink()
    with pytest.raises(MissingError, match=r"train-00001-of-00004\.safetensors is gone: put back a copy"):
        Efficient(str(folder))


def test_other_images_are_named(tmp_path: Path, capsys: Screen) -> None:
    data, folder = photos(tmp_path / "photos"), tmp_path / "eff"
    assert rela("convert", *data, *PRIOR, "--to", str(folder), f"--outputs={tmp_path / 'out'}") == 0
    assert rela("data", "check", str(folder), f"--outputs={tmp_path / 'out'}") == 0
    photo(tmp_path / "photos" / "val" / "a" / "30 é.jpg", 99, (50, 40))
    assert rela("data", "check", str(folder), f"--outputs={tmp_path / 'out'}") == 3
    assert "val/a/30 é.jpg" in capsys.readouterr().err
    (tmp_path / "photos" / "train" / "a" / "00 é.jpg").unlink()
    words = ("dataset=efficient", f"dataset.root={folder}", *RUN, f"--outputs={tmp_path / 'new'}")
    assert rela("train", *words) == 3
    assert "has 23 train images, and 24 were there when it was converted" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- interrupted


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    words = ("convert", *data, *PRIOR, "runtime=cpu", "--images", "copy", "--to")
    assert call(tmp_path, *words, "whole") == 0
    points = ("rows.after_line", "transport.after_write", "train.after_replace",
              "test.before_write", "pack.after_write", "README.after_fsync", "efficient.after_write")  # fmt: skip
    shutil.rmtree(tmp_path / "outputs" / "cache" / "features")
    shutil.rmtree(tmp_path / "outputs" / "cache" / "targets")
    finished: dict[str, int] = {}
    for point in points:
        process = spawn(tmp_path, *words, "killed", env={"RELA_FAULT": point})
        assert process.wait(120) == -9, point
        noted = tmp_path / "killed" / "converting.json"
        names = json.loads(noted.read_text())["files"] if noted.exists() else {}
        assert finished.keys() <= names.keys(), point
        assert all(os.stat(tmp_path / "killed" / name).st_mtime_ns == when for name, when in finished.items()), point
        finished = {n: os.stat(tmp_path / "killed" / n).st_mtime_ns for n in names if n != "README.md"}
    assert call(tmp_path, *words, "killed") == 0
    one, other = (hashes(tmp_path / name) for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    mine = ("README.md", "images/pack.json")  # the cost of the second extraction, the time
    assert {k: v for k, v in one.items() if k not in mine} == {k: v for k, v in other.items() if k not in mine}
    assert rela("data", "check", str(tmp_path / "killed")) == 0


def test_a_second_call_does_nothing_and_mends_what_is_gone(tmp_path: Path, capsys: Screen) -> None:
    words = ("convert", *PIXELS, *PRIOR, "--to", str(tmp_path / "eff"), f"--outputs={tmp_path / 'out'}")
    assert rela(*words) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "eff").iterdir()}
    assert rela(*words) == 0
    assert "already there" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "eff").iterdir()}
    (tmp_path / "eff" / "transport.safetensors").unlink()
    assert rela(*words) == 0
    assert rela("data", "check", str(tmp_path / "eff")) == 0
    assert rela(*words, "seed=1", "prior.seed=1") == 1
    assert "holds another efficient dataset (its targets differ)" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["convert", "dataset=fake"], "say where to: --to FOLDER"),
        (["convert", "--to", "x", "--images", "copies"], "--images=copies must be one of link, copy, none"),
        (["convert", "--to", "x", "prior=none"], "prior=none gives no features"),
        (["convert", "--to", "x", "--shard-mb", "0"], "--shard-mb=0 must be a whole number from 1 to"),
        (["train", "dataset=efficient"], "dataset=efficient needs dataset.root=FOLDER"),
        (["train", "prior=efficient"], "prior=efficient goes with dataset=efficient"),
        (["train", "dataset=efficient", "prior=random"], "prior=random needs a transport of its own"),
        (["train", "dataset=efficient", "transport=pca"], "transport=pca cannot change the targets"),
        (["train", "dataset=efficient", "matching.targets=live"], "matching.targets=live needs the prior itself"),
        (["data", "check", "nowhere"], "cannot read nowhere"),
    ],
)
def test_what_cannot_be_meant(words: list[str], wanted: str, capsys: Screen) -> None:
    assert rela(*words) == 2
    assert wanted in capsys.readouterr().err


def damaged_facts(folder: Path, change: dict[str, Any]) -> None:
    from rela_cli.store.files import load_json, write_json

    write_json(folder / "efficient.json", {**load_json(folder / "efficient.json")[0], **change})


def test_a_folder_of_anybody_reads_no_other_files(made: tuple[Path, Run], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "eff"))
    told = EfficientFolder(folder).facts
    damaged_facts(folder, {"files": {"../secret": {"bytes": 1, "sha256": "0"}}})
    with pytest.raises(MissingError, match="is not what `rela convert` writes"):
        EfficientFolder(folder)
    damaged_facts(folder, {"files": told["files"], "dataset": {**told["dataset"], "target": "os.system"}})
    with pytest.raises(ConfigError, match=r"made of os\.system, which is not part of rela"):
        Efficient(str(folder), images=str(made[0].parent / "photos")).images("train", np.array([0]))
    damaged_facts(folder, {"format": 2})
    with pytest.raises(MissingError, match="of format 2, and this rela reads format 1"):
        EfficientFolder(folder)
