"""`rela probe RUN`: finished runs and priors judged on any dataset; the run stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rela_cli import cli
from rela_cli.commands import probe
from rela_cli.config.reading import from_tree, to_tree
from rela_cli.data.batches.cache import read_labels
from rela_cli.data.datasets import Cifar10
from rela_cli.errors import ConfigError, MissingError
from rela_cli.evaluation.measures import effective_rank, rankme
from rela_cli.evaluation.protocols import Task
from rela_cli.learners.build import build_backbone, load_backbone
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from rela_cli.priors.base import resize
from rela_cli.stages.probe import probe as judged_by
from tests.factories import config, pixels

FAKE = ("dataset=fake", "dataset.n=96", "dataset.n_test=40", "dataset.size=8", "learner.width=4", "runtime.threads=1")
SHORT = ("epochs=1", "batch_size=16", "prior=none", "probe.protocols=[knn]", "probe.knn_k=10")
OTHER = ("dataset=fake", "dataset.n=80", "dataset.n_test=30", "dataset.size=12", "dataset.seed=3")
PROBE = ("probe.protocols=[knn,lbfgs]", "probe.knn_k=5", "runtime.threads=1")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs."""
    place = tmp_path_factory.mktemp("judged")
    for seed in (0, 1):
        pipeline.run(config(*FAKE, *SHORT, f"seed={seed}", f"paths.outputs={place}"))
    return place


def call(outputs: Path, *words: str) -> None:
    assert probe.main([*words, f"paths.outputs={outputs}"]) == 0


def run_of(outputs: Path, seed: int = 0) -> Path:
    (found,) = outputs.glob(f"runs/*-s{seed}-*")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    own = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "on_"))]
    return {path.name: path.read_bytes() for path in own}


def on(folder: Path, dataset: str = "fake") -> Json:
    (path,) = folder.glob(f"on_{dataset}-*.json")
    return dict(json.loads(path.read_text()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images in a folder."""
    for number, image in enumerate(pixels(40, 8).permute(0, 2, 3, 1).numpy()):
        place = tmp_path / "photos" / ("train" if number < 24 else "test") / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return tmp_path / "photos"


def test_numbers_are_those_of_the_backbone_on_resized_images(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(outputs)
    before = contents(run)
    call(outputs, run.name, *OTHER, *PROBE)
    assert contents(run) == before, "the run itself stays as it is"
    found = on(run)
    made = Run(config(*FAKE, *SHORT, *OTHER, f"paths.outputs={outputs}"))
    facts = json.loads((run / "manifest.json").read_text())["train"]
    shown = {name: load_file(made.images.folder / f"{name}.safetensors")["images"] for name in ("train", "test")}
    labels = [read_labels(made.images, name) for name in ("train", "test")]
    assert labels[0] is not None and labels[1] is not None
    learner = config(*FAKE).learner
    for key, network in (("probe", load_backbone(run)), ("untrained", build_backbone(learner, 0, 8).eval())):
        mean, std = (torch.tensor(facts[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        with torch.no_grad():
            train, test = (network((resize(shown[n], 8, "bicubic") / 255 - mean) / std) for n in ("train", "test"))
        task = Task(train.half().float(), labels[0], test.half().float(), labels[1])
        for protocol in ("knn", "lbfgs"):
            expected = judged_by(task, protocol, config("probe.knn_k=5").probe)["top1"]
            assert found[key][protocol]["top1"] == pytest.approx(expected, abs=1 / 30 + 1e-9), (key, protocol)
        if key == "probe":
            assert found["ranks"][key]["rankme"] == pytest.approx(rankme(task.train), rel=1e-3)
            assert found["ranks"][key]["effective_rank"] == pytest.approx(effective_rank(task.train), rel=1e-3)
            assert 1 <= found["ranks"][key]["lidar"] <= 32 and found["ranks"][key]["lidar_images"] == 80
    assert (found["image_size"], found["fed_size"], found["test_samples"]) == (12, 8, 30)
    assert "resized to the 8 px" in capsys.readouterr().out


def test_a_second_call_does_nothing_and_needs_no_torch(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(outputs, run_of(outputs).name, *OTHER, *PROBE)
    (path,) = run_of(outputs).glob("on_*.json")
    before = path.read_bytes()
    capsys.readouterr()
    monkeypatch.setattr("rela_cli.stages.probe.probes", lambda *_: 1 / 0)
    call(outputs, run_of(outputs).name, *OTHER, *PROBE)
    assert path.read_bytes() == before
    out = capsys.readouterr().out
    assert "nothing to do" in out and "top-1" in out


def test_another_protocol_or_setting_adds_its_number(outputs: Path) -> None:
    call(outputs, run_of(outputs).name, *OTHER, *PROBE)
    call(outputs, run_of(outputs).name, *OTHER, "probe.protocols=[few_shot]", "probe.few_shot_draws=2")
    call(outputs, run_of(outputs).name, *OTHER, "probe.protocols=[knn]", "probe.knn_k=7")
    found = on(run_of(outputs))
    assert found["probe"].keys() == {"knn", "lbfgs", "few_shot"}
    assert found["probe"]["knn"]["settings"]["knn_k"] == 7


def test_a_pattern_judges_every_run_it_fits_once(outputs: Path) -> None:
    call(outputs, "fake-*", "latest", *OTHER, "probe.protocols=[knn]", "probe.baselines=false", "dataset.seed=4")
    assert all(len([*run_of(outputs, seed).glob("on_fake-*")]) >= 1 for seed in (0, 1))


def test_without_a_dataset_it_is_the_runs_own(outputs: Path) -> None:
    call(outputs, run_of(outputs, 1).name, "probe.protocols=[knn]", "probe.knn_k=10", "probe.baselines=false")
    result = json.loads((run_of(outputs, 1) / "result.json").read_text())
    files = [json.loads(path.read_text()) for path in run_of(outputs, 1).glob("on_fake-*.json")]
    (own,) = [one for one in files if one["train_samples"] == 96]
    assert own["probe"]["knn"]["top1"] == pytest.approx(result["probe"]["knn"]["top1"], abs=1 / 40 + 1e-9)


def test_a_folder_is_shown_at_the_size_that_is_asked_for(outputs: Path, folder: Path) -> None:
    words = ("dataset=image_folder", f"dataset.root={folder}", "probe.protocols=[knn]", "probe.baselines=false")
    call(outputs, run_of(outputs).name, *words)
    assert on(run_of(outputs), "photos")["fed_size"] == 8
    call(outputs, run_of(outputs).name, *words, "dataset.image_size=16")
    sizes = [json.loads(path.read_text())["fed_size"] for path in run_of(outputs).glob("on_photos-*.json")]
    assert sorted(sizes) == [8, 16]


def test_a_prior_alone_is_judged_without_training(outputs: Path) -> None:
    call(outputs, "--prior-alone", "prior=patches", "prior.patches=8", *OTHER, "probe.protocols=[knn]")
    (place,) = (outputs / "priors").glob("patches-*")
    assert 0 <= on(place)["probe"]["knn"]["top1"] <= 1
    assert on(place)["probe"]["knn"]["network"] == "prior alone"
    assert len([*(outputs / "runs").glob("*-*")]) == 2, "no run has been made"


def test_the_size_of_a_run_as_a_prior_enters_its_name_only_when_it_is_given(outputs: Path) -> None:
    from rela_cli.weights import locate

    prior = config("prior=rela_run", f"prior.run={run_of(outputs)}").prior
    assert "image_size" not in locate.identity(prior), "features from before this key are found again"
    assert locate.identity(config("prior=rela_run", f"prior.run={run_of(outputs)}", "prior.image_size=16").prior)[
        "image_size"
    ]


TUNE = (*OTHER, "probe.protocols=[finetune]", "probe.finetune_steps=4", "probe.finetune_lr=0.01", "runtime.threads=1")


def test_finetune_stands_beside_the_same_from_scratch(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(outputs, 1)
    before = contents(run)
    call(outputs, run.name, *TUNE, "probe.label_share=0.1")
    call(outputs, run.name, *TUNE, "probe.baselines=false", "dataset.seed=3")
    assert contents(run) == before
    (found,) = [json.loads(p.read_text()) for p in run.glob("on_fake-*.json") if "finetune-10%" in p.read_text()]
    assert found["probe"].keys() == found["untrained"].keys() == {"finetune-10%", "finetune-100%"}
    few, whole = (found["probe"][f"finetune-{share}%"] for share in (10, 100))
    assert (few["labels"], whole["labels"], few["settings"]["label_share"]) == (8, 80, 0.1)
    assert found["untrained"]["finetune-10%"]["network"] == "from scratch"
    assert found["flops"]["probe"] >= few["flops"] + whole["flops"] > 0
    monkeypatch.setattr("rela_cli.stages.finetune.finetune", lambda *_: 1 / 0)
    call(outputs, run.name, *TUNE, "probe.label_share=0.1")
    assert "nothing to do" in capsys.readouterr().out


def test_finetune_from_scratch_is_made_once_for_runs_of_one_seed(outputs: Path) -> None:
    (place,) = outputs.glob("runs/*-s0-*")
    call(outputs, place.name, *TUNE)
    scratch = on_all(place)["untrained"]["finetune-100%"]["entry"]
    assert scratch != on_all(run_of(outputs, 1))["untrained"].get("finetune-100%", {}).get("entry"), "another seed"
    assert (outputs / "cache" / "baselines" / scratch).is_dir()


def on_all(run: Path) -> Json:
    """Every file beside a run as one."""
    found: Json = {"probe": {}, "untrained": {}}
    for path in run.glob("on_*.json"):
        facts = json.loads(path.read_text())
        found = {key: found[key] | facts[key] for key in found}
    return found


def test_finetune_is_of_finished_runs(outputs: Path) -> None:
    with pytest.raises(ConfigError, match="train first, and then say `rela probe RUN"):
        pipeline.run(config(*FAKE, *SHORT, "probe.protocols=[finetune]", f"paths.outputs={outputs}"))


END = (*FAKE, *SHORT, "seed=7", "probe.baselines=false")


def test_a_run_is_judged_on_other_datasets_at_its_end(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", *END, f"paths.outputs={tmp_path}/o", f"evaluate=[digits,image_folder:{folder}]")
    assert cli.main(words) == 0
    (run,) = (tmp_path / "o" / "runs").glob("*-s7-*")
    assert on(run, "digits")["probe"].keys() == on(run, "photos")["probe"].keys() == {"knn"}
    capsys.readouterr()
    assert cli.main(words) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3
    plain = config(*END, f"paths.outputs={tmp_path}/o")
    assert Run(plain).folder == run, "evaluate= is no part of a run's name"


@pytest.mark.parametrize(
    ("named", "status", "said"),
    [
        ("digts", 2, "did you mean digits?"),
        ("image_folder:nowhere", 3, "nowhere is not a folder"),
        ("image_folder:FLAT", 2, "evaluate=image_folder:"),
    ],
)
def test_what_it_is_to_be_judged_on_is_looked_at_before_training(
    named: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / f"{number}.png")
    named = named.replace("FLAT", str(tmp_path / "flat"))
    assert cli.main(["train", *END, f"paths.outputs={tmp_path}/o", f"evaluate=[{named}]"]) == status
    assert said in " ".join(capsys.readouterr().err.split())
    assert not [*tmp_path.glob("o/runs/*")]


def test_what_has_to_be_downloaded_for_that_is_fetched_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(_: Cifar10) -> None:
        raise MissingError("cifar100 cannot be downloaded")

    monkeypatch.setattr(Cifar10, "fetch", no_network)
    assert cli.main(["train", *END, f"paths.outputs={tmp_path}/o", "evaluate=[cifar100]"]) == 3
    assert "cifar100 cannot be downloaded" in capsys.readouterr().err
    assert not [*tmp_path.glob("o/runs/*")]


BAD = {
    "another folder": (("RUN", "paths.run=there"), ConfigError, "cannot be said beside a finished run"),
    "no run to tune": (("--prior-alone", "prior=patches", "probe.protocols=[finetune]"), ConfigError, "of a run"),
    "another setting": (("RUN", "epochs=3"), ConfigError, "cannot be said beside a finished run"),
    "no such run": (("nosuchrun", "dataset=fake"), MissingError, "no run nosuchrun"),
    "no such pattern": (("nosuch*", "dataset=fake"), MissingError, "fits nosuch*"),
    "prior and run": (("--prior-alone", "RUN"), ConfigError, "no run may be named"),
    "no prior": (("--prior-alone", "prior=none"), ConfigError, "prior=none has no features"),
    "no labels": (("RUN", "dataset=image_folder", "dataset.root=FLAT"), ConfigError, "has no labels to judge"),
    "unknown dataset": (("RUN", "dataset=fak"), ConfigError, "did you mean fake"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_said(name: str, outputs: Path, tmp_path: Path) -> None:
    words, kind, said = BAD[name]
    (tmp_path / "flat").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / f"{number}.png")
    places = {"RUN": run_of(outputs).name, "FLAT": str(tmp_path / "flat")}
    words = tuple(word.replace("FLAT", places["FLAT"]).replace("RUN", places["RUN"]) for word in words)
    with pytest.raises(kind, match=said.replace("*", r"\*")):
        call(outputs, *words)


def test_an_unfinished_run_is_named_with_its_command(outputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "begun"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps({"status": "stopped", "command": "rela train x=1"}))
    with pytest.raises(MissingError, match=r"begun has no backbone yet.*rela train x=1"):
        call(tmp_path, "begun", "dataset=fake")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("latest", "dataset=digits"), True),
        (("dataset=digits", "some/run"), True),
        (("--prior-alone", "prior=embedded"), True),
        (("dataset=digits", "budget=0.5"), False),
        (("--outputs", "there", "budget=0.5"), False),
        (("--config-dir", "mine", "~seed"), False),
        ((), False),
    ],
)
def test_names_of_runs_are_told_from_settings(words: tuple[str, ...], meant: bool) -> None:
    assert probe.is_meant(words) is meant


def test_help_and_completion_know_of_runs(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "latest", "--help"]) == 0
    assert "rela probe latest dataset=digits" in capsys.readouterr().out
    monkeypatch.chdir(outputs)
    (outputs / "outputs").mkdir(exist_ok=True)
    (outputs / "outputs" / "runs").symlink_to(outputs / "runs")
    monkeypatch.setenv("COMP_LINE", "rela probe fake-none-resnet18-simclr-b1-s1")
    assert cli.main(["-sc", "query=bash"]) == 0
    assert run_of(outputs, 1).name in capsys.readouterr().out


def test_the_dataset_of_a_run_is_written_as_one_would_type_it() -> None:
    from rela_cli.launch.judge import written

    assert [written(value) for value in (None, True, 3, 0.5, ["a", 1])] == ["null", "true", "3", "0.5", "['a',1]"]
    tree = to_tree(config(*FAKE))
    assert from_tree(tree).dataset == config(*FAKE).dataset
    odd = "it's, a [name]=x"
    assert config("dataset=image_folder", f"dataset.root={written(odd)}").dataset.options["root"] == odd


def test_segment_stands_beside_the_run_by_head(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a dataset with masks it is what is measured unless other protocols are asked for."""
    for part, numbers in (("train", range(6)), ("val", range(6, 9))):
        for number in numbers:
            for kind, array in (
                ("images", pixels(1, 8, number)[0].permute(1, 2, 0)),
                ("masks", pixels(1, 8)[0, 0] % 3),
            ):
                place = tmp_path / "shapes" / part / kind
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.numpy()).save(place / f"{number}.png")
    run = run_of(outputs)
    before = contents(run)
    words = (run.name, "dataset=segmentation", f"dataset.root={tmp_path}/shapes", "runtime.threads=1")
    fast = ("probe.segment_steps=3", "probe.segment_batch_size=4")
    call(outputs, *words, *fast)
    assert contents(run) == before
    found = on(run, "shapes")
    assert found["probe"].keys() == found["untrained"].keys() == {"segment-linear", "segment-fcn"}
    number = found["probe"]["segment-linear"]
    assert 0 <= number["miou"] <= 1 and number["settings"]["segment_steps"] == 3 and len(number["iou"]) == 3
    assert found["flops"]["probe"] > 0
    monkeypatch.setattr("rela_cli.stages.segment.Segmenting", lambda *_: 1 / 0)
    capsys.readouterr()
    call(outputs, *words, *fast)
    out = capsys.readouterr().out
    assert "nothing to do" in out and "segment-fcn (online)  untrained" in out and "pixel accuracy" in out
    with pytest.raises(ConfigError, match=r"labels are masks.*probe.protocols=\[segment\]"):
        call(outputs, *words, "probe.protocols=[knn]")
    with pytest.raises(ConfigError, match="segment needs a mask for each image, and dataset=fake has none"):
        call(outputs, run.name, *OTHER, "probe.protocols=[segment]")
