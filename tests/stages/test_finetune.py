"""Fine-tuning against a plain torchvision loop; its labels, its layers, and that a stopped one goes on to the same."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import Split
from rela_cli.data.datasets import Digits
from rela_cli.errors import ConfigError, Stopped
from rela_cli.learners.resnet import resnet18
from rela_cli.pipeline.pipeline import Pipeline
from rela_cli.pipeline.run import Run
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.stages import finetune
from rela_cli.stages.finetune import Classifier, Finetuning, labelled_rows, layers, read_data
from tests.factories import config

STEPS, BATCH, RATE = 40, 32, 3e-3
WORDS = (
    *("dataset=digits", "dataset.limit=200", "dataset.test_limit=300", "prior=random", "prior.width=4"),
    *("batch_size=2", "probe.finetune_batch_size=32", f"probe.finetune_steps={STEPS}"),
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


def prepared(outputs: Path, *words: str) -> tuple[Config, Run]:
    run = Run(config(*WORDS, *words, f"paths.outputs={outputs}"))
    Pipeline(run, "").make_images()
    return run.config, run


def tuned(outputs: Path, folder: Path, *words: str) -> dict[str, Any]:
    made, run = prepared(outputs, *words)
    folder.mkdir(exist_ok=True)
    return finetune.finetune(made, run.images, run.dataset, folder)


def plain_loop(outputs: Path, seed: int) -> float:
    """The same settings in torch and torchvision alone, with random numbers of their own."""
    run = prepared(outputs)[1]
    stats = run.images.manifest or {}
    arrays = [Digits(200, 300, 0, False).load(split) for split in ("train", "test")]
    (x, y), (x_test, y_test) = ((torch.from_numpy(i).permute(0, 3, 1, 2), torch.from_numpy(t)) for i, t in arrays)
    torch.manual_seed(100 + seed)
    network = nn.Sequential(resnet18("cifar", 4), nn.Linear(32, 10))
    normal = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(stats["mean"], stats["std"])])
    light = v2.Compose([v2.RandomResizedCrop(8, scale=(0.6, 1.0), antialias=True), normal])
    weights, vectors = ([p for p in network.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}])
    for step in range(STEPS):
        share = (step + 1) / 5 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / (STEPS - 4)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        rows = torch.randperm(len(x))[:BATCH]
        loss = F.cross_entropy(network(torch.stack([light(image) for image in x[rows]])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        return float((network(normal(x_test)).argmax(1) == y_test).double().mean())


def test_it_agrees_with_a_plain_torchvision_loop(outputs: Path, tmp_path: Path) -> None:
    """Four seeds each: the means differ by less than the noise between seeds allows."""
    words = (f"probe.finetune_lr={RATE}",)
    ours = [tuned(outputs, tmp_path / f"{s}", *words, f"seed={s}", f"prior.seed={s}")["top1"] for s in range(4)]
    theirs = [plain_loop(outputs, seed) for seed in range(4)]
    noise = (statistics.variance(ours) / 4 + statistics.variance(theirs) / 4) ** 0.5
    assert 0.3 < statistics.fmean(theirs) < 0.98, "a task at its limits would compare nothing"
    assert abs(statistics.fmean(ours) - statistics.fmean(theirs)) < 3 * noise + 0.01, (ours, theirs)


def test_the_rate_is_the_one_with_the_best_held_out_tenth(outputs: Path, tmp_path: Path) -> None:
    found = tuned(outputs, tmp_path / "a", "probe.finetune_steps=20")
    assert found["rate"] in finetune.RATES["adamw"]
    assert found["labels"] == 200 and found["steps"] == 20 and found["flops"] > 0 and found["seconds"] > 0
    one = tuned(outputs, tmp_path / "b", "probe.finetune_steps=20", f"probe.finetune_lr={found['rate']}")
    assert one["top1"] == found["top1"], "the last training is the same with the rate given"
    assert one["flops"] * 4 == found["flops"], "three more trainings have been paid for"


def test_sgd_and_layer_decay_train_too(outputs: Path, tmp_path: Path) -> None:
    words = ("probe.finetune_optimizer=sgd", "probe.finetune_layer_decay=0.7", "probe.finetune_lr=0.05")
    assert tuned(outputs, tmp_path / "a", *words)["top1"] > 0.2


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_a_share_of_the_labels_is_stratified_seeded_and_never_empty(share: float) -> None:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((3, 40, 100))])[torch.randperm(143)]
    rows = labelled_rows(labels, share, 0)
    assert torch.equal(rows, labelled_rows(labels, share, 0)) and torch.equal(rows, rows.unique())
    for label, total in enumerate((3, 40, 100)):
        assert int((labels[rows] == label).sum()) == max(1, round(share * total))
    if share < 1:
        assert not torch.equal(rows, labelled_rows(labels, share, 1))
    assert set(rows.tolist()) <= set(labelled_rows(labels, 1.0, 0).tolist())
    assert set(labelled_rows(labels, 0.01, 0).tolist()) <= set(rows.tolist()), "shares are nested"


def test_only_the_labels_of_the_share_are_seen(outputs: Path) -> None:
    made, run = prepared(outputs, "probe.label_share=0.1")
    data = read_data(made, run.images, run.dataset)
    assert data.train.labels is not None
    hidden = torch.full_like(data.train.labels, -100)
    hidden[data.rows] = data.train.labels[data.rows]
    assert int((hidden >= 0).sum()) == len(data.rows) < 30
    blind = replace(data, train=Split(data.train.images, hidden))
    found = [
        Finetuning(replace(made, probe=replace(made.probe, finetune_steps=8)), run.images, some, outputs).run()
        for some in (data, blind)
    ]
    assert found[0]["top1"] == found[1]["top1"]


def test_every_parameter_is_in_one_layer_and_rates_fall_towards_the_input() -> None:
    model = Classifier(NetworkPrior(resnet18("cifar", 4), Preprocess(8, (0.5,) * 3, (0.5,) * 3)), 10, 0)
    found = layers(model, 0.5)
    every = [parameter for parameters, _ in found for parameter in parameters]
    assert len(every) == len({*map(id, every)}) == len([*model.parameters()])
    factors = [factor for _, factor in found]
    assert factors == sorted(factors) and factors[-1] == 1.0 and factors[-2] == 0.5
    assert len(found) == 10, "the stem with its norm, eight blocks, the head"
    assert {factor for _, factor in layers(model, 1.0)} == {1.0}


def test_layers_of_a_transformer() -> None:
    from rela_cli.learners.timm import vit

    network = vit("vit_tiny_patch16_224", 4, 16)
    network.feature_dim = 192  # type: ignore[assignment]
    model = Classifier(NetworkPrior(network, Preprocess(16, (0.5,) * 3, (0.5,) * 3)), 10, 0)
    found = layers(model, 0.65)
    assert len(found) == 1 + 1 + 12 + 1, "tokens and positions, patches, blocks with the last norm, head"
    assert any(parameter is network.pos_embed for parameter in found[0][0])


def test_a_stopped_one_goes_on_to_the_same_number(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal in the second training; then another process, which takes up what lies in the folder."""
    words = ("probe.finetune_steps=6", "seed=3")
    whole = tuned(outputs, tmp_path / "whole", *words)
    step, pending = Finetuning.step, []

    def stopping(self: Finetuning, *given: Any) -> None:
        step(self, *given)
        if len(self.scores) == 1 and given[-1] == 4:
            pending.append(Stopped("stopped", 15))

    with monkeypatch.context() as broken:
        broken.setattr(Finetuning, "step", stopping)
        broken.setattr(finetune, "deferred", lambda: Handed(pending))
        with pytest.raises(Stopped):
            tuned(outputs, tmp_path / "cut", *words)
    assert [*(tmp_path / "cut").glob("checkpoint-*")]
    taken: list[int] = []
    monkeypatch.setattr(Finetuning, "step", lambda self, *given: (taken.append(given[-1]), step(self, *given))[1])
    again = tuned(outputs, tmp_path / "cut", *words)
    assert "resumed at step 4 of training 2" in capsys.readouterr().out
    assert taken[:2] == [5, 6] and len(taken) == 2 + 2 * 6
    assert (again["top1"], again["rate"], again["flops"]) == (whole["top1"], whole["rate"], whole["flops"])
    assert not [*(tmp_path / "cut").glob("checkpoint-*")]


class Handed:
    """Stands for signals that wait."""

    def __init__(self, pending: list[Stopped]) -> None:
        self.pending = pending

    def __enter__(self) -> list[Stopped]:
        return self.pending

    def __exit__(self, *_: object) -> None:
        pass


def test_a_prior_without_weights_to_train_is_named(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prior=patches is no network"):
        made, run = prepared(outputs)
        patches = config("prior=patches", "prior.patches=8").prior
        finetune.finetune(replace(made, prior=patches), run.images, run.dataset, tmp_path)
