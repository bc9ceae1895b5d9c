"""Whole runs, small but real: what is made, and what is found again."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from rela_cli.config.parts import instantiate
from rela_cli.config.reading import from_tree
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import read_split, read_stats
from rela_cli.errors import ConfigError, RelaError
from rela_cli.evaluation.measures import knn_top1
from rela_cli.evaluation.representation import representations
from rela_cli.learners.build import build_backbone
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from tests.conftest import NO_TORCH, Rela
from tests.pipeline.shared import FAKE, PLAIN, RANDOM, SHORT, WORDS, entries, go, read, result, setup, stamps


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.Outcome]:
    """One finished run; tests that change it take a folder of their own."""
    outputs = tmp_path_factory.mktemp("done")
    return outputs, go(outputs, *WORDS)


# --------------------------------------------------------------------------------------------------------- what is made

KEYS = {
    *("status", "dataset", "prior", "transport", "learner", "method", "budget", "seed", "epochs", "steps"),
    *("samples_seen", "switch_step", "probe", "seconds", "seconds_now", "flops", "peak_memory_bytes", "baselines"),
}


def test_result_json(done: tuple[Path, pipeline.Outcome]) -> None:
    outcome = done[1]
    found = result(outcome)
    assert outcome.status == "run"
    assert found.keys() >= KEYS
    expected = {
        "status": "finished",
        "dataset": "fake",
        "prior": "random",
        "transport": "whitening",
        "learner": "resnet18",
        "method": "simclr",
        "budget": 0.5,
        "seed": 0,
        "epochs": 1,
        "steps": 4,
        "samples_seen": 64,
        "train_samples": 128,
        "test_samples": 40,
        "classes": 4,
    }
    assert {key: found[key] for key in expected} == expected
    stages = {"extract", "transport", "train", "probe"}
    for account in ("seconds", "seconds_now", "flops"):
        assert found[account].keys() == stages
        assert all(found[account][stage] > 0 for stage in stages), account
    assert found["probe"].keys() == {"knn"}
    assert 0 <= found["probe"]["knn"]["top1"] <= 1
    assert found["probe"]["knn"]["network"] == "online"
    assert found["peak_memory_bytes"] > 1e7
    assert found["baselines"]["untrained"]["knn"].keys() >= {"top1"}
    assert found["baselines"]["prior_alone"]["knn"].keys() >= {"top1"}


def test_the_plain_method_has_no_prior_anywhere(tmp_path: Path) -> None:
    found = result(go(tmp_path, *PLAIN))
    assert (found["prior"], found["transport"], found["switch_step"], found["target_dim"]) == ("none", None, None, None)
    assert found["seconds"]["extract"] == found["seconds"]["transport"] == found["flops"]["extract"] == 0
    assert not found["baselines"].get("prior_alone")
    assert (entries(tmp_path, "features"), entries(tmp_path, "targets")) == ([], [])


def test_the_run_folder(done: tuple[Path, pipeline.Outcome]) -> None:
    outputs, outcome = done
    folder = outcome.folder
    assert folder is not None
    assert folder.name.startswith("fake-random-resnet18-simclr-b0.5-s0-")
    names = {path.name for path in folder.iterdir()}
    kept = {"config.yaml", "manifest.json", "metrics.jsonl", "switch.jsonl", "backbone.safetensors", "result.json"}
    assert names - {".lock"} == kept
    manifest = read(folder / "manifest.json")
    assert manifest["status"] == "finished"
    assert {"versions", "command", "created", "host", "pid", "inputs", "hash"} <= manifest.keys()
    assert manifest["inputs"].keys() == {"images", "features", "targets"}
    for kind, name in manifest["inputs"].items():
        assert (outputs / "cache" / kind / name / "manifest.json").exists()
    again = from_tree(yaml.safe_load((folder / "config.yaml").read_text()))
    assert Run(again).hash == folder.name[-8:]
    assert (outputs / "runs" / "latest").resolve() == folder.resolve()


def test_what_is_shared_can_be_read_by_others(done: tuple[Path, pipeline.Outcome]) -> None:
    """As the umask has it; safetensors by itself writes for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in done[0].rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock"]
    assert {
        path.name: oct(path.stat().st_mode & 0o777) for path in files if path.stat().st_mode & 0o777 != 0o666 & ~umask
    } == {}


def test_metrics(tmp_path: Path) -> None:
    words = (*WORDS, "epochs=4", "runtime.eval_every_epochs=2", "switch=fixed", "switch.at=0.5")
    folder = go(tmp_path, *words).folder
    assert folder is not None
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 8, 12, 16]
    assert [record["phase"] for record in records] == [1, 1, 2, 2]
    keys = {"loss", "phase", "rho", "lr", "images_per_second", "data_wait"}
    assert all(keys <= record.keys() for record in records)
    assert [("knn" in record, "effective_rank" in record) for record in records] == [(False,) * 2, (True,) * 2] * 2
    found = read(folder / "result.json")
    assert (found["switch_step"], found["phase1_steps"]) == (9, 8)


def test_cost_counts_each_phase(tmp_path: Path) -> None:
    costs = {}
    for at in (0, 0.5, 1):
        found = result(go(tmp_path, *WORDS, "switch=fixed", f"switch.at={at}"))
        costs[at] = found["flops"]["train"]
    assert costs[0] + costs[1] == 2 * costs[0.5]
    assert costs[0] > costs[1], "phase 2 has heads to pay for"


# ------------------------------------------------------------------------------------------------------ what is found


def test_the_same_command_again_is_found_and_changes_nothing(done: tuple[Path, pipeline.Outcome]) -> None:
    outputs, outcome = done
    before = stamps(outputs)
    again = go(outputs, *WORDS)
    assert (again.status, again.folder) == ("found", outcome.folder)
    assert stamps(outputs) == before


def test_found_without_importing_torch(rela: Rela, tmp_path: Path) -> None:
    assert go(tmp_path / "outputs", *WORDS).status == "run"
    before = stamps(tmp_path / "outputs")
    again = rela("train", *WORDS, "runtime.eval_every_epochs=0", stub=NO_TORCH)
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing to do" in again.stdout
    assert stamps(tmp_path / "outputs") == before


def test_another_budget_reuses_features_and_targets(tmp_path: Path) -> None:
    go(tmp_path, *WORDS)
    cache = stamps(tmp_path / "cache")
    second = go(tmp_path, *WORDS, "budget=1.0")
    assert second.status == "run"
    assert {k: v for k, v in stamps(tmp_path / "cache").items() if k in cache} == cache
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [1, 1, 1]
    assert result(second)["seconds_now"]["extract"] == 0
    assert result(second)["seconds"]["extract"] > 0, "the prior pass is part of the account, also from the cache"
    assert len(list((tmp_path / "runs").glob("fake-*"))) == 2


def test_another_seed_learner_or_method_reuses_features_and_targets(tmp_path: Path) -> None:
    for words in ([], ["seed=1", "learner.width=8", "method=byol", "optimizer.lr=0.01"]):
        go(tmp_path, *WORDS, *words, until="transport")
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [1, 1, 1]


def test_another_prior_reuses_images_and_another_transport_features(tmp_path: Path) -> None:
    make = partial(go, tmp_path, until="transport")
    make(*WORDS)
    make(*WORDS, "prior.seed=1")
    make(*FAKE, *SHORT, "prior=patches", "prior.patches=8", "prior.patch_size=3")
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [1, 3, 3]
    make(*WORDS, "transport=pca")
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [1, 3, 4]
    make(*WORDS, "dataset.limit=100")
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [2, 4, 5]


def test_another_probe_trains_nothing_and_adds_its_number(tmp_path: Path) -> None:
    first = go(tmp_path, *WORDS)
    folder, old = first.folder, result(first)
    assert folder is not None
    before = stamps(folder)
    second = go(tmp_path, *WORDS, "probe.protocols=[knn,lbfgs]")
    assert (second.status, second.folder) == ("run", folder)
    after, found = stamps(folder), result(second)
    assert all(after[name] == before[name] for name in ("backbone.safetensors", "metrics.jsonl"))
    assert found["probe"].keys() == {"knn", "lbfgs"}
    assert found["probe"]["knn"] == old["probe"]["knn"]
    assert found["seconds"]["train"] == old["seconds"]["train"]
    assert found["seconds_now"]["train"] == 0
    assert found["seconds"]["probe"] > old["seconds"]["probe"]
    assert found["baselines"]["untrained"].keys() == {"knn", "lbfgs"}
    assert go(tmp_path, *WORDS, "probe.protocols=[lbfgs]").status == "found"


def test_other_settings_of_a_probe_are_not_taken_for_the_same(tmp_path: Path) -> None:
    go(tmp_path, *WORDS, "probe.protocols=[knn,lbfgs]")
    changed = go(tmp_path, *WORDS, "probe.protocols=[knn,lbfgs]", "probe.knn_k=3")
    assert changed.status == "run"
    task = representations_of(changed.folder, setup(tmp_path, *WORDS))
    assert result(changed)["probe"]["knn"]["top1"] == pytest.approx(knn_top1(*task, 3, 0.1))
    assert go(tmp_path, *WORDS, "probe.protocols=[knn,lbfgs]", "probe.knn_k=3", "probe.rela_epochs=7").status == "found"


def representations_of(folder: Path | None, made: Config) -> list[torch.Tensor]:
    """Train features and labels, test features and labels of a run's backbone; of a fresh one without a folder."""
    images = Run(made).images
    backbone = build_backbone(made.learner, made.seed, 16)
    if folder is not None:
        backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
    found = []
    for name in ("train", "test"):
        split = read_split(images, name)
        assert split is not None and split.labels is not None
        found += [representations(backbone, split.images, read_stats(images), 64), split.labels]
    return found


def test_numbers_are_of_the_backbone_that_was_written(tmp_path: Path) -> None:
    outcome = go(tmp_path, *WORDS, "epochs=3")
    made, found = setup(tmp_path, *WORDS, "epochs=3"), result(outcome)
    assert found["probe"]["knn"]["top1"] == pytest.approx(knn_top1(*representations_of(outcome.folder, made), 10, 0.1))
    untrained = knn_top1(*representations_of(None, made), 10, 0.1)
    assert found["baselines"]["untrained"]["knn"]["top1"] == pytest.approx(untrained)
    targets = [load_file(Run(made).targets.folder / f"{s}.safetensors")["targets"].float() for s in ("train", "test")]
    _, train_labels, _, test_labels = representations_of(None, made)
    width = found["target_dim"]
    alone = knn_top1(targets[0][:, :width], train_labels, targets[1][:, :width], test_labels, 10, 0.1)
    assert found["baselines"]["prior_alone"]["knn"]["top1"] == pytest.approx(alone)


def test_baselines_are_made_once_for_all_runs(tmp_path: Path) -> None:
    go(tmp_path, *WORDS)
    made = entries(tmp_path, "baselines")
    assert len(made) == 2
    go(tmp_path, *WORDS, "budget=1.0", "epochs=2", "optimizer.lr=0.01", "method=byol")
    assert entries(tmp_path, "baselines") == made
    go(tmp_path, *WORDS, "seed=1")
    assert len(entries(tmp_path, "baselines")) == 3, "another seed is another untrained learner and the same prior"
    go(tmp_path, *WORDS, "seed=2", "probe.baselines=false")
    assert len(entries(tmp_path, "baselines")) == 3


def test_a_deleted_result_is_only_probed_again(tmp_path: Path) -> None:
    first = go(tmp_path, *WORDS)
    assert first.folder is not None
    before, old = stamps(first.folder), result(first)
    (first.folder / "result.json").unlink()
    second = go(tmp_path, *WORDS)
    assert (second.status, second.folder) == ("run", first.folder)
    after, new = stamps(first.folder), result(second)
    assert all(after[name] == before[name] for name in ("backbone.safetensors", "metrics.jsonl"))
    assert new["probe"]["knn"]["top1"] == old["probe"]["knn"]["top1"]
    assert new["seconds"]["train"] == old["seconds"]["train"]
    assert new["seconds_now"]["train"] == 0


def test_a_deleted_backbone_is_trained_again(tmp_path: Path) -> None:
    first = go(tmp_path, *WORDS)
    assert first.folder is not None
    weights = load_file(first.folder / "backbone.safetensors")
    weights = {k: v.clone() for k, v in weights.items()}
    (first.folder / "backbone.safetensors").unlink()
    assert go(tmp_path, *WORDS).status == "run"
    again = load_file(first.folder / "backbone.safetensors")
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_stages_up_to(tmp_path: Path) -> None:
    assert go(tmp_path, *WORDS, until="extract").folder is None
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [1, 1, 0]
    assert not (tmp_path / "runs").exists()
    assert go(tmp_path, *WORDS, until="extract").status == "found"
    go(tmp_path, *WORDS, until="transport")
    assert [len(entries(tmp_path, kind)) for kind in ("images", "features", "targets")] == [1, 1, 1]
    assert go(tmp_path, *WORDS, until="transport").status == "found"
    assert go(tmp_path, *WORDS).status == "run"


# ---------------------------------------------------------------------------------------------------------- determinism


def weights_of(outcome: pipeline.Outcome, name: str = "backbone") -> dict[str, torch.Tensor]:
    assert outcome.folder is not None
    return load_file(outcome.folder / f"{name}.safetensors")


@pytest.mark.parametrize("words", [WORDS, (*WORDS, "method=dino", "method.prototypes=16"), (*PLAIN, "method=byol")])
def test_one_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path, words: tuple[str, ...]) -> None:
    words = (*words, "epochs=2", "runtime.eval_every_epochs=1")
    first = weights_of(go(tmp_path / "a", *words))
    torch.manual_seed(123)
    second = weights_of(go(tmp_path / "b", *words, "runtime.eval_every_epochs=0"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = weights_of(go(tmp_path / "c", *words, "seed=1"))
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_another_process_gives_the_same_bits(rela: Rela, tmp_path: Path) -> None:
    here = weights_of(go(tmp_path / "here", *WORDS))
    assert rela("train", *WORDS, "runtime.eval_every_epochs=0", kind="fresh").returncode == 0
    there = load_file(next((tmp_path / "outputs" / "runs").glob("fake-*/backbone.safetensors")))
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_features_are_row_by_row_and_the_same_whatever_follows(tmp_path: Path) -> None:
    """Row i is sample i, and blocks have one size: fewer images give the same bits for those that are left."""
    made = setup(tmp_path, *WORDS, "runtime.block_size=48")
    pipeline.run(made, until="extract")
    run = Run(made)
    stored = {name: load_file(run.features.folder / f"{name}.safetensors")["features"] for name in ("train", "test")}
    prior = instantiate(made.prior, data=read_stats(run.images)).eval()
    for name, features in stored.items():
        split = read_split(run.images, name)
        assert split is not None
        assert features.shape == (len(split.images), prior.feature_dim)
        with torch.no_grad():
            one_by_one = torch.cat([prior(image[None]) for image in split.images])
        assert torch.allclose(features.float(), one_by_one, rtol=2e-3, atol=1e-4)
    from rela_cli.data.batches.loader import in_blocks

    images = read_split(run.images, "train").images  # type: ignore[union-attr]
    whole, part = (torch.cat(list(in_blocks(prior, x, 48, torch.device("cpu")))) for x in (images, images[:101]))
    assert torch.equal(whole[:101], part)
    assert torch.equal(whole.to(stored["train"].dtype), stored["train"])


def test_the_dead_and_the_explained_are_reported(tmp_path: Path) -> None:
    go(tmp_path, *WORDS, until="transport")
    facts = Run(setup(tmp_path, *WORDS)).targets.manifest
    assert facts is not None
    assert facts["dim"] == 32
    features = load_file(Run(setup(tmp_path, *WORDS)).features.folder / "train.safetensors")["features"].double()
    rank = int(torch.linalg.matrix_rank(features - features.mean(0), rtol=1e-5))
    assert 16 < rank < 33
    assert facts["dead"] == 32 - rank
    assert facts["explained_variance"]["32"] == pytest.approx(1)


# -------------------------------------------------------------------------------------------------------- kinds of data


def unlabelled(folder: Path, n: int = 40) -> Path:
    folder.mkdir()
    for i in range(n):
        Image.effect_noise((8, 8), 80 + i).convert("RGB").save(folder / f"{i}.png")
    return folder


def test_images_without_classes_train_and_say_why_there_are_no_numbers(tmp_path: Path, capsys: Any) -> None:
    root = unlabelled(tmp_path / "images")
    plain = [*SHORT, *RANDOM, "runtime.eval_every_epochs=1"]
    made = folder_config(tmp_path, root, *plain)
    outcome = pipeline.run(made)
    found = result(outcome)
    assert found["probe"] == {}
    assert "no class folders" in found["probe_skipped"]
    assert "no class folders" in capsys.readouterr().out
    assert weights_of(outcome)
    assert "effective_rank" in (outcome.folder / "metrics.jsonl").read_text()  # type: ignore[operator]
    assert pipeline.run(made).status == "found"
    (root / "more.png").write_bytes((root / "0.png").read_bytes())
    assert pipeline.run(folder_config(tmp_path, root, *plain)).status == "run"


def folder_config(outputs: Path, root: Path, *words: str) -> Config:
    from rela_cli.config.compose import compose

    words = ("dataset=image_folder", f"dataset.root={root}", "learner.width=4", "runtime.threads=1", *words)
    return compose([*words, f"paths.outputs={outputs / 'outputs'}"])


def test_the_place_of_images_does_not_count(tmp_path: Path) -> None:
    import shutil

    first = unlabelled(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    runs = [Run(folder_config(tmp_path, root, *SHORT, *RANDOM)) for root in (first, tmp_path / "second")]
    assert runs[0].hash == runs[1].hash
    assert runs[0].features.hash == runs[1].features.hash


def test_a_batch_larger_than_the_subset_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=16 is larger than the subset: budget=0.1 of 128 samples is 12"):
        go(tmp_path, *WORDS, "budget=0.1")
    assert list(tmp_path.iterdir()) == []


def test_the_target_network_can_be_probed_too(tmp_path: Path) -> None:
    words = (*WORDS, "method=byol")
    go(tmp_path, *words)
    both = result(go(tmp_path, *words, "probe.network=target"))
    assert both["probe"].keys() == {"knn", "knn@target"}
    assert both["probe"]["knn@target"]["network"] == "target"
    with pytest.raises(RelaError, match="method=simclr has no target network"):
        go(tmp_path, *WORDS, "probe.network=target")


# ------------------------------------------------------------------------------------------------------------- by hand


def test_a_folder_by_hand_and_another_run_in_it(tmp_path: Path) -> None:
    mine = f"paths.run={tmp_path / 'mine'}"
    first = go(tmp_path / "o", *WORDS, mine)
    assert first.folder == tmp_path / "mine"
    before = stamps(tmp_path / "mine")
    assert go(tmp_path / "o", *WORDS, mine).status == "found"
    with pytest.raises(RelaError, match=r"mine holds another run"):
        go(tmp_path / "o", *WORDS, mine, "seed=1")
    assert stamps(tmp_path / "mine") == before


# ----------------------------------------------------------------------------------------------- three lines without us


def test_the_backbone_loads_into_torchvision(tmp_path: Path) -> None:
    words = [w for w in WORDS if not w.startswith("learner")]
    words = [*words, "learner=resnet18", "learner.stem=imagenet", "learner.width=64", "dataset.n=32", "dataset.size=32"]
    outcome = go(tmp_path, *words, "budget=1.0")
    assert outcome.folder is not None
    path = outcome.folder / "backbone.safetensors"

    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    model.load_state_dict(load_file(path))

    made = setup(tmp_path, *words, "budget=1.0")
    ours, images = build_backbone(made.learner, made.seed, 16), Run(made).images
    ours.load_state_dict(load_file(path))
    split, data = read_split(images, "test"), read_stats(images)
    assert split is not None
    x = (split.images.float() / 255 - data.mean.view(3, 1, 1)) / data.std.view(3, 1, 1)
    with torch.no_grad():
        theirs = model.eval()(x)
    assert torch.allclose(theirs, representations(ours, split.images, data, 40), atol=1e-4, rtol=1e-4)
    assert theirs.std(0).mean() > 0.01


def test_resnet50_has_torchvisions_names_too() -> None:
    from rela_cli.learners.resnet import resnet50

    reference = torchvision.models.resnet50()
    reference.fc = nn.Identity()
    ours = resnet50("imagenet", 64)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}
    assert ours.feature_dim == 2048


# --------------------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.slow
def test_cells_share_their_entries(rela: Rela, tmp_path: Path) -> None:
    """Four cells in one process; run again it finds them all, and makes the one that is missing."""
    sweep = ("train", "-m", "budget=0.2,0.5", "prior=none,random", "epochs=1", "learner.width=4")
    images = ("dataset=fake", "dataset.n=96", "dataset.n_test=32", "dataset.size=8", "batch_size=8", "probe.knn_k=5")
    words = (*sweep, *images, "runtime.eval_every_epochs=0", "runtime.threads=1", "probe.protocols=[knn]")
    first = rela(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.splitlines()[-1] == "4 cells: 4 run, 0 found, 0 failed"
    assert len(entries(tmp_path / "outputs", "features")) == 1
    assert len(entries(tmp_path / "outputs", "images")) == 1
    runs = sorted((tmp_path / "outputs" / "runs").glob("fake-*"))
    assert len(runs) == 4
    second = rela(*words)
    assert second.stdout.splitlines()[-1] == "4 cells: 0 run, 4 found, 0 failed"
    (runs[2] / "result.json").unlink()
    third = rela(*words)
    assert third.stdout.splitlines()[-1] == "4 cells: 1 run, 3 found, 0 failed"
    assert (runs[2] / "result.json").exists()
    assert len(entries(tmp_path / "outputs", "features")) == 1


def test_a_narrow_learner_on_larger_images_does_not_crash(rela: Rela) -> None:
    """A process of its own: where channels_last is used regardless, some torch builds end in a segmentation fault."""
    words = ("dataset=fake", "dataset.size=64", "dataset.n=32", "dataset.n_test=8", "batch_size=16", "epochs=1")
    done = rela("train", *words, "learner.width=4", "prior=none", "probe.protocols=[knn]", "probe.baselines=false")
    assert done.returncode == 0, done.stderr


def test_channels_last_where_it_is_safe() -> None:
    from rela_cli.learners.resnet import resnet18
    from rela_cli.training.trainee import memory_format

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert memory_format(resnet18("cifar", 8), cpu, 32) == torch.channels_last
    assert memory_format(resnet18("cifar", 8), cpu, 64) == torch.contiguous_format
    assert memory_format(resnet18("cifar", 8), cuda, 64) == torch.channels_last
    assert memory_format(resnet18("cifar", 16), cpu, 64) == torch.channels_last
