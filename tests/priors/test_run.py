"""One of our own runs as the prior of another, and the one that ships with the package."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from rela_cli.commands import table
from rela_cli.config.compose import compose
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import read_split, read_stats
from rela_cli.data.labels import CIFAR10
from rela_cli.errors import ConfigError, MissingError
from rela_cli.evaluation.representation import representations
from rela_cli.learners.build import load_backbone
from rela_cli.learners.resnet import resnet18
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from rela_cli.store.files import file_sha256, read_whole, write_json
from rela_cli.weights import locate, run_folder
from rela_cli.weights.seen import is_right, labels_seen, note
from tests.factories import config

WORDS = ("dataset.n=48", "dataset.n_test=24", "dataset.size=12", "batch_size=16", "epochs=1", "probe.protocols=[knn]")


def setup(outputs: Path, *words: str) -> Config:
    return config(*WORDS, *words, f"paths.outputs={outputs}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished BYOL run, with a target network."""
    outputs = tmp_path_factory.mktemp("first")
    folder = pipeline.run(setup(outputs, "prior=none", "method=byol", "seed=7")).folder
    assert folder is not None
    return folder


@pytest.mark.parametrize("network", ["online", "target"])
def test_a_run_is_fed_as_it_was_trained(trained: Path, tmp_path: Path, network: str) -> None:
    """The same images, the backbone as it was kept: the features are its representations."""
    words = ("prior=rela_run", f"prior.run={trained}", f"prior.network={network}", "dataset.seed=0")
    made = setup(tmp_path, *words)
    pipeline.run(made, until="extract")
    run = Run(made)
    features = load_file(run.features.folder / "train.safetensors")["features"].float()
    split, stats = read_split(run.images, "train"), read_stats(run.images)
    assert split is not None
    expected = representations(load_backbone(trained, network), split.images, stats, 16)
    assert torch.allclose(features, expected, atol=2e-3 * float(expected.abs().max()))
    assert (run.features.manifest or {})["feature_dim"] == 32


def test_mean_and_std_are_the_runs_own_not_the_new_datas(trained: Path, tmp_path: Path) -> None:
    made = setup(tmp_path, "prior=rela_run", f"prior.run={trained}", "dataset.classes=2", "dataset.size=16")
    facts = run_folder.run_facts(trained)
    preprocess = instantiate(locate.located(made.prior), allow=()).preprocess
    assert (preprocess.image_size, preprocess.mean, preprocess.std) == (12, facts["mean"], facts["std"])
    pipeline.run(made)
    result = Run(made).result or {}
    assert (result["prior"], result["prior_run"]) == ("rela_run", Path(trained).resolve().name)


def test_networks_and_places(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("config.yaml", "manifest.json", "backbone.safetensors", "backbone_target.safetensors"):
        (copy / name).write_bytes((trained / name).read_bytes())

    def hash_of(folder: Path, network: str = "online") -> str:
        words = ("prior=rela_run", f"prior.run={folder}", f"prior.network={network}")
        return Run(setup(tmp_path, *words)).features.hash

    assert hash_of(copy) == hash_of(trained), "the place does not count"
    assert hash_of(copy, "target") != hash_of(copy)
    manifest = read_whole(copy / "manifest.json")
    manifest["train"]["mean"] = [0.1, 0.2, 0.3]
    write_json(copy / "manifest.json", manifest)
    assert hash_of(copy) != hash_of(trained), "what it is fed with does"


def test_what_is_no_finished_run_is_named(tmp_path: Path, trained: Path) -> None:
    for folder, message in [(tmp_path, "has no config.yaml"), (tmp_path / "x", "is not a finished run")]:
        with pytest.raises(MissingError, match=message):
            locate.locate(config("prior=rela_run", f"prior.run={folder}").prior)
    with pytest.raises(ConfigError, match=r"needs prior.run=FOLDER"):
        config("prior=rela_run")
    for name in ("config.yaml", "backbone.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "manifest.json").write_text('{"status": "finished", "train": {"steps": 3}}')
    with pytest.raises(MissingError, match=r"does not say train\.image_size; train it again"):
        locate.identity(config("prior=rela_run", f"prior.run={tmp_path}").prior)


def test_seen_labels_are_passed_on(trained: Path, tmp_path: Path) -> None:
    """A run whose own prior had seen labels has seen them too."""
    for name in ("config.yaml", "manifest.json", "backbone.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "result.json").write_text(json.dumps({"labels_seen": ["cifar10"]}))
    prior = config("prior=rela_run", f"prior.run={tmp_path}").prior
    assert labels_seen(prior) == ("cifar10",)
    assert labels_seen(config("prior=rela_run", f"prior.run={trained}").prior) == ()
    (tmp_path / "result.json").write_text(json.dumps({"labels_seen": [], "labels_unknown": True}))
    assert labels_seen(prior) is None, "nor does a run know what its prior did not know"
    (tmp_path / "result.json").unlink()
    assert labels_seen(prior) is None
    told = config("prior=rela_run", f"prior.run={tmp_path}", "prior.card.labels_seen=[cifar100]").prior
    assert labels_seen(told) == ("cifar100",)


def test_a_supervised_run_has_seen_the_labels_of_its_own_data(tmp_path: Path) -> None:
    first = pipeline.run(setup(tmp_path, "prior=none", "method=supervised")).folder
    for classes, saw in ((4, True), (3, False)):
        made = setup(tmp_path, "prior=rela_run", f"prior.run={first}", f"dataset.classes={classes}")
        pipeline.run(made)
        assert (Run(made).result or {})["prior_saw_labels"] is saw


def test_a_run_of_a_foreign_learner_needs_leave(trained: Path, tmp_path: Path) -> None:
    facts = {key: value for key, value in read_whole(trained / "manifest.json").items() if key != "config_hash"}
    write_json(tmp_path / "manifest.json", facts)
    (tmp_path / "backbone.safetensors").write_bytes((trained / "backbone.safetensors").read_bytes())
    tree = yaml.safe_load((trained / "config.yaml").read_text())
    tree["learner"]["_target_"] = "os.mkdir"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"wants to run os\.mkdir"):
        pipeline.run(setup(tmp_path / "out", "prior=rela_run", f"prior.run={tmp_path}"))


# ------------------------------------------------------------------------------------------------------------- embedded


def test_the_embedded_prior_is_what_its_card_says(tmp_path: Path) -> None:
    made = setup(tmp_path, "prior=embedded")
    path, card = run_folder.EMBEDDED / "backbone.safetensors", made.prior.card
    assert path.stat().st_size <= 3e6
    assert file_sha256(path) == card.sha256
    assert labels_seen(made.prior) == ()
    assert card.features == load_backbone(run_folder.EMBEDDED).feature_dim
    assert sum(p.numel() for p in load_backbone(run_folder.EMBEDDED).parameters()) / 1e6 == pytest.approx(
        card.parameters, rel=0.01
    )
    assert pipeline.run(made).status == "run"
    assert (Run(made).result or {})["prior_saw_labels"] is False


# ----------------------------------------------------------------------------------- whole runs, from a file to a table


def folder_of_images(root: Path, classes: list[str]) -> Path:
    """Two train images and one test image a class."""
    for split, count in (("train", 2), ("test", 1)):
        for i, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for j in range(count):
                pixels = np.random.RandomState(10 * i + j).randint(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{j}.png")
    return root


@pytest.mark.parametrize(("classes", "saw"), [(CIFAR10.split(), True), ([f"thing{i}" for i in range(10)], False)])
def test_a_run_whose_prior_saw_the_labels_says_so(tmp_path: Path, capsys, classes: list[str], saw: bool) -> None:
    """CIFAR-10 in a folder of another name, under a prior trained with CIFAR-10's labels."""
    torch.save(resnet18("cifar", 8).state_dict(), tmp_path / "w.pth")
    root = folder_of_images(tmp_path / "images", classes)
    words = [f"dataset.root={root}", "batch_size=10", "epochs=1", "probe.protocols=[knn]", "learner.width=4"]
    prior = ["prior=cifar10_resnet18", f"prior.weights={tmp_path}/w.pth", "prior.card.labels_seen=[cifar10]"]
    outputs = tmp_path / "outputs"
    made = compose(["dataset=image_folder", *words, *prior, f"paths.outputs={outputs}"])
    assert pipeline.run(made).status == "run"
    result = Run(made).result or {}
    assert (result["labels_seen"], result["prior_saw_labels"]) == (["cifar10"], saw)
    assert table.main([str(outputs), "--format", "md"]) == 0
    assert ("†" in capsys.readouterr().out) == saw


def cifar_run(tmp_path: Path, *words: str) -> Config:
    """CIFAR-10's classes under a file that nobody says anything about."""
    if not (tmp_path / "images").exists():
        torch.save(resnet18("cifar", 8).state_dict(), tmp_path / "w.pth")
        folder_of_images(tmp_path / "images", CIFAR10.split())
    own = [f"dataset.root={tmp_path}/images", f"prior.weights={tmp_path}/w.pth", f"paths.outputs={tmp_path}/outputs"]
    short = ["prior.model=resnet18", "batch_size=10", "epochs=1", "probe.protocols=[knn]", "learner.width=4"]
    return compose(["dataset=image_folder", "prior=checkpoint", *own, *short, *words])


def test_the_card_of_today_is_what_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without a card is unknown, and says so; another card corrects the finished run without training it."""

    def made(*words: str) -> tuple[str, str, dict]:
        capsys.readouterr()
        done = cifar_run(tmp_path, *words)
        pipeline.run(done)
        told = capsys.readouterr().out
        table.main([f"{tmp_path}/outputs", "--format", "md"])
        return told, capsys.readouterr().out, Run(done).result or {}

    told, shown, result = made()
    assert "labels    unknown: nobody says which labels prior=checkpoint was trained with" in told
    assert "nobody says which labels its prior was trained with" in shown
    assert re.search(r"\d\.\d\?", shown)
    assert (result["labels_unknown"], result["prior_saw_labels"]) == (True, False)
    stamp = (tmp_path / "outputs" / "runs" / "latest" / "backbone.safetensors").stat().st_mtime_ns

    told, shown, result = made("prior.card.labels_seen=[cifar10]")
    assert "nothing to do" in told
    assert "corrected result.json: labels that the prior has seen: cifar10" in told
    assert "†" in shown
    assert "?" not in shown
    assert (result["labels_seen"], result["prior_saw_labels"], result["labels_unknown"]) == (["cifar10"], True, False)
    assert "corrected" not in made("prior.card.labels_seen=[cifar10]")[0]

    told, shown, result = made("prior.card.labels_seen=[]")
    assert "labels that the prior has seen: none" in told
    assert "labels    " not in told
    assert not {"†", "?"} & set(shown)
    assert (tmp_path / "outputs" / "runs" / "latest" / "backbone.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"labels_seen=\[cifar-10\], did you mean cifar10\?"):
        made("prior.card.labels_seen=[cifar-10]")


def test_whose_labels_a_card_has() -> None:
    seen = {
        "prior=patches": (),
        "prior=none": (),
        "prior=clip_vitb16": (),
        "prior=cifar10_resnet18": ("cifar10",),
        "prior=torchvision prior.model=resnet18": ("imagenet",),
        "prior=torchvision prior.model=resnet18 prior.weights=own.pth": None,
        "prior=torchvision prior.model=resnet18 prior.weights=random": (),
        "prior=clip_vitb16 prior.weights=own.safetensors": None,
        "prior=cifar10_resnet18 prior.weights=own.bin": None,
        "prior=cifar10_resnet18 prior.weights=own.bin prior.card.labels_seen=[cifar10]": ("cifar10",),
        "prior=imagenet_resnet50 prior.weights=own.pth": None,
        "prior=embedded": (),
        "prior=timm prior.model=resnet18": None,
        "prior=exported prior.weights=x.pt2": None,
        "prior=open_clip prior.model=RN50 prior.tag=x prior.card.labels_seen=[]": (),
    }
    assert {words: labels_seen(config(*words.split()).prior) for words in seen} == seen


def test_your_own_copy_of_the_published_file_is_known_by_its_hash(tmp_path: Path) -> None:
    """What a card says is about the published weights, and holds wherever they lie."""
    (tmp_path / "own.pth").write_bytes(b"weights")
    words = ("prior=imagenet_resnet50", f"prior.weights={tmp_path}/own.pth")
    assert labels_seen(config(*words, "prior.card.sha256=9f9f9f9f").prior) is None
    digest = file_sha256(tmp_path / "own.pth")
    assert labels_seen(config(*words, f"prior.card.sha256={digest}").prior) == ("imagenet",)


def test_a_named_prior_with_a_file_of_ones_own_is_said_to_be_unknown() -> None:
    prior = config("prior=cifar10_resnet18", "prior.weights=own.bin").prior
    assert "which labels prior=cifar10_resnet18 prior.weights=own.bin was" in str(note(prior, of_cifar10()))
    assert "was trained with the labels of this" in str(note(config("prior=cifar10_resnet18").prior, of_cifar10()))


def test_an_older_record_of_a_file_is_brought_up_to_what_its_card_says() -> None:
    """Otherwise its table would say unknown for ever: older versions did not write that a file had seen none."""
    older = {"prior": "checkpoint", "labels_seen": [], "prior_saw_labels": False}
    prior = config("prior=checkpoint", "prior.model=resnet18", "prior.weights=x", "prior.card.labels_seen=[]").prior
    assert not is_right(older, prior, of_cifar10())
    assert is_right({**older, "prior_labels_seen": [], "labels_unknown": False}, prior, of_cifar10())
    assert is_right({**older, "prior": "timm"}, prior, of_cifar10())


def of_cifar10() -> Any:
    """As much of a data set as a card is judged by."""
    return SimpleNamespace(label_set="cifar10")


def test_a_learner_that_does_not_fit_says_so_before_any_stage(tmp_path: Path) -> None:
    small = ("dataset=fake", *WORDS, "prior=random", "prior.width=4", f"paths.outputs={tmp_path}")
    made = compose([*small, "learner=vit_s16"])
    with pytest.raises(
        ConfigError, match=r"learner.patch_size=16 does not divide images of 12 px; these do: 2, 3, 4, 6"
    ):
        pipeline.run(made)
    assert not Run(made).features.folder.exists()
    made = compose([*small, "learner=torchvision", "learner.model=alexnet"])
    with pytest.raises(ConfigError, match=r"learner=torchvision cannot take images of 12 px"):
        pipeline.run(made)
    assert not Run(made).features.folder.exists()


def test_a_prior_that_is_gone_by_the_end_does_not_cost_the_result(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What result.json says of it is looked up before the work."""
    from rela_cli.stages import train as stage

    copy = shutil.copytree(trained, tmp_path / "copy")
    train = stage.train

    def and_then_gone(*arguments: Any) -> Any:
        facts = train(*arguments)
        shutil.rmtree(copy)
        return facts

    monkeypatch.setattr(stage, "train", and_then_gone)
    done = pipeline.run(setup(tmp_path, "prior=rela_run", f"prior.run={copy}"))
    assert done.folder is not None
    assert json.loads((done.folder / "result.json").read_text())["prior_run"] == "copy"
