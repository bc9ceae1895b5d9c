"""`rela bench distill`: equal processor seconds, and lightly-train in an environment of its own."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rela_cli.commands.bench import distill
from rela_cli.commands.bench.command import chosen_rows
from rela_cli.commands.bench.contest import Bench
from rela_cli.commands.bench.timing import Timing
from rela_cli.data.folders import ImageFolder
from tests import warm

FAKE = """
import json, os, torch
def pretrain(out, model, method_args, **others):
    images = torch.zeros(2, 3, 32, 32)
    for network in (model, method_args["teacher"]):
        x = network.forward_features(images)
        assert x["features"].shape == (2, network.feature_dim(), 4, 4)
        assert torch.equal(network.forward_pool(x)["pooled_features"].flatten(1), network.get_model()(images))
    os.makedirs(f"{out}/exported_models")
    torch.save(model.get_model().state_dict(), f"{out}/exported_models/exported_last.pt")
    json.dump(others, open(f"{out}/asked.json", "w"))
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, rounds=1, tiny=True)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The python of an environment with a `lightly_train` in it that checks what it is given and trains nothing."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lightly_train.py").write_text(FAKE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("one", "three", "seconds", "epochs"),
    [(7.0, 9.0, 22.0, 16), (7.0, 27.0, 22.0, 2), (7.0, 27.0, 1.0, 1), (7.0, 6.9, 6.9, 1)],
    ids=["6 to start, 1 each", "10 each", "no time for one", "three took no longer than one"],
)
def test_as_many_epochs_as_fit(one: float, three: float, seconds: float, epochs: int) -> None:
    assert distill.equal_epochs(one, three, seconds) == epochs


def test_it_runs_only_where_it_is_named() -> None:
    assert "distill" not in {*chosen_rows([]), *chosen_rows(["all"])}
    assert chosen_rows(["startup", "distill"]) == ("distill", "startup")


def test_points_are_paired_by_seed() -> None:
    ours, theirs = (
        [distill.Outcome(epochs, Timing(cpu, 2 * cpu), top1) for top1 in found]
        for epochs, cpu, found in ((16, 60.0, (50.0, 40.0, 45.0)), (8, 62.0, (45.0, 41.0, 42.0)))
    )
    row = distill.row("live", ours, theirs)
    assert (row.value.median, row.value.min, row.value.max, row.reached) == (3, -1, 5, True)
    assert row.accuracy == "45.0 (epochs: 16) against 42.7 (epochs: 8)"
    assert row.seconds["ours"] == {"cpu": 60, "wall": 120} and row.seconds["peer"]["cpu"] == 62


def test_without_its_environment_lightly_train_is_skipped_and_said(bench: Bench) -> None:
    assert set(distill.peers(bench)) == {"live"}
    assert [(note["peer"], "--lightly-train" in note["why"]) for note in bench.skipped] == [("lightly-train", True)]


def test_png_files_have_the_pixels(bench: Bench) -> None:
    pixels, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6) % 2
    distill.material.write_images(bench.folder / "png" / "train", pixels, labels, ".png")
    dataset = ImageFolder(
        str(bench.folder / "png"), image_size=None, limit=None, test_limit=None, seed=0, flip=True, cache=None
    )
    found, classes = dataset.load("train")
    order = torch.argsort(labels, stable=True)
    assert torch.equal(torch.from_numpy(found).permute(0, 3, 1, 2), pixels[order])
    assert torch.equal(torch.from_numpy(classes), labels[order])


def test_lightly_train_gets_the_same_images_learner_and_teacher(bench: Bench, environment: Path) -> None:
    """What comes out is the learner as it was given, so its probe is that of the untrained one."""
    bench.lightly_train, images = environment, distill.png_tree(bench)
    assert 0 <= distill.lightly_train(bench, images, 3, 0) <= 100
    asked = json.loads(next(bench.folder.glob("distill-*/asked.json")).read_text())
    assert (asked["data"], asked["epochs"], asked["seed"]) == (str(images / "train"), 3, 0)
    assert asked["optim_args"]["lr"] * (64 / 1536) ** 0.5 == pytest.approx(5e-3)
    assert asked["transform_args"]["image_size"] == [32, 32]


def test_an_environment_without_it_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error's last line; the other peers stay."""
    bench.lightly_train, bench.peers = Path(sys.executable), ("lightly-train",)
    monkeypatch.setattr(distill, "rela", lambda *words: 50.0)
    assert list(distill.run(bench)) == []
    assert "lightly_train" in bench.skipped[-1]["why"]


@pytest.mark.slow
def test_live_targets_are_what_the_peer_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's own command, forked from the tests' server instead of started anew."""

    def forked(*words: str) -> None:
        assert (*words[:3],) == distill.RELA
        done = warm.run(bench.folder, *words[3:], env=os.environ)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(distill, "command", forked)
    train = partial(distill.rela, bench, distill.png_tree(bench), ("matching.targets=live",))
    assert 0 <= distill.trained(train, 1, 0).top1 <= 100
    (result,) = bench.folder.glob("distill-*/runs/*-live-*/result.json")
    assert json.loads(result.read_text())["epochs"] == 1
