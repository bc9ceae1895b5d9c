"""The linear probe during training: what it learns, and that it leaves the network and its random numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rela_cli.training.linear_probe import MOMENTUM, RATE, LinearProbe, linear_probe
from rela_cli.training.trainer import Trainer
from tests.factories import config
from tests.promises.harness import Killed, differing, ending, small, train, untimed

WITHOUT = "probe.in_training=false"
METHODS = ("byol", "dino", "supervised")


def learned(method: str, *words: str, folder: Path) -> tuple[Trainer, dict[str, Any]]:
    loop = small(f"method={method}", *words)
    train(folder, loop)
    return loop, ending(loop, folder)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_the_same_bit_for_bit_with_it_and_without(method: str, tmp_path: Path) -> None:
    loop, found = learned(method, folder=tmp_path / "with")
    state = torch.get_rng_state()
    bare, expected = learned(method, WITHOUT, folder=tmp_path / "without")
    assert bare.linear is None and loop.linear is not None
    assert torch.equal(state, torch.get_rng_state()), "torch's generator is where it was"
    records = found.pop("metrics"), expected.pop("metrics")
    assert differing(untimed(found), untimed(expected)) == []
    assert all(0 <= record.pop("linear") <= 1 for record in records[0]) and records[0] == records[1]


def test_a_step_is_that_of_torch() -> None:
    """SGD with momentum on batch-normalised features, two views of the same images."""
    torch.manual_seed(0)
    probe = LinearProbe(nn.Identity(), 5, 3, torch.device("cpu"))
    layer, norm = nn.Linear(5, 3), nn.BatchNorm1d(5, affine=False)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE, momentum=MOMENTUM)
    right = 0
    for _ in range(4):
        views, labels = torch.randn(2, 8, 5) * 3 + 1, torch.randint(3, (8,))
        twice = labels.repeat(2)
        probe.learn([views.flatten(0, 1)], labels)
        logits = layer(norm(views.flatten(0, 1)))
        right += int((logits.argmax(1) == twice).sum())
        optimizer.zero_grad()
        F.cross_entropy(logits, twice).backward()
        optimizer.step()
    expected = torch.cat((layer.weight, layer.bias[:, None]), dim=1).T
    torch.testing.assert_close(probe.head, expected)
    probe.known = tuple(probe.tally.tolist())  # type: ignore[assignment]
    assert probe.facts() == {"linear": right / 64} and probe.facts() == {}
    assert probe.tally.tolist() == [0, 0]


def test_it_says_what_a_network_knows() -> None:
    """Of features that hold the class it is right soon; of noise it is right by chance."""
    torch.manual_seed(1)
    for known, low, high in ((True, 0.9, 1.0), (False, 0.1, 0.4)):
        probe = LinearProbe(nn.Identity(), 8, 4, torch.device("cpu"))
        for _ in range(60):
            labels = torch.randint(4, (32,))
            probe.learn([torch.randn(32, 8) + 4 * known * F.one_hot(labels, 8)], labels)
        right, seen = probe.tally.tolist()
        assert low <= right / seen <= high


def test_it_goes_on_where_it_stood(tmp_path: Path) -> None:
    whole, expected = learned("simclr", folder=tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.raises(Killed):
        train(folder, small("method=simclr"), every=0, stop=5)
    loop = train(folder, small("method=simclr"))
    assert loop.linear is not None and whole.linear is not None
    assert torch.equal(loop.linear.head, whole.linear.head)
    assert ending(loop, folder)["metrics"] == expected["metrics"]


def test_labels_decide_and_what_has_no_effect_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    network = nn.Identity()
    network.feature_dim = 4  # type: ignore[assignment]
    asked = config("probe.in_training=true")
    assert linear_probe(config(), network, None, torch.device("cpu")) is None
    assert capsys.readouterr().err == ""
    assert linear_probe(asked, network, None, torch.device("cpu")) is None
    assert "probe.in_training=true has no effect: the train images have no labels" in capsys.readouterr().err
    assert linear_probe(asked, network, 10, torch.device("cpu")) is not None
