"""`rela doctor --gpu`: a table of what a step launches, without a GPU and without data."""

from __future__ import annotations

import pytest
import torch

from rela_cli.commands import doctor, gpu_count
from rela_cli.training import graph_trial, step_count
from rela_cli.training.step_count import timed_step
from rela_cli.training.trainee import Sizes
from tests.factories import config

WORDS = ("dataset=fake", "learner=cifar_resnet", "learner.depth=8", "method=simsiam", "batch_size=8")


def test_a_table_of_both_phases(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--gpu", *WORDS]) == 0
    text = capsys.readouterr().out
    assert text.startswith("cifar_resnet, simsiam, adamw: batch 8, 32 px\n")
    rows = {line[:10].strip(): line[10:28].split() for line in text.splitlines()[4:14]}
    assert rows.pop("a read") == ["17", "7"]
    total = rows.pop("a step")
    parts = [[int(n) for n in of_phase if n != "-"] for of_phase in zip(*rows.values(), strict=True)]
    assert [int(n) for n in total] == [sum(of_phase) for of_phase in parts]
    assert rows["switch"][1] == rows["keep"][1] == "-" and min(map(int, rows["backward"])) > 20
    assert "The host waits for the GPU once in 10 steps" in text and "and nowhere else." in text
    if not torch.cuda.is_available():
        assert "runtime.step=auto: not tried here, where there is no GPU.\nThere is no GPU here, so nothing" in text


@pytest.mark.parametrize(
    ("why", "step", "shown"), [("", "graph", "as one CUDA graph (kept)"), ("it hangs", "eager", "it hangs.")]
)
def test_on_a_gpu_it_says_what_auto_comes_to(why: str, step: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a trial that went badly before is repeated."""
    monkeypatch.setattr(graph_trial, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(graph_trial, "path_of", lambda method: "kept")
    monkeypatch.setattr(graph_trial, "verdict", lambda method, path, again: why if again else "old")
    chosen, words = gpu_count.with_way(config())
    assert chosen.runtime.step == step and words.startswith("runtime.step=auto: ") and shown in words
    assert "runtime.step=eager, as it was" in gpu_count.with_way(config("runtime.step=eager"))[1]


def test_a_wait_is_shown_and_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = step_count.StepCount({"views": 3}, ["views: nonzero at views.py:7"], {}, 7, ["copy of (8,) to cpu"])
    monkeypatch.setattr(step_count, "count_step", lambda config, phase, sizes: waiting)
    monkeypatch.setattr(gpu_count, "timings", lambda config, sizes: "")
    assert doctor.main(["--gpu", *WORDS, "prior=none"]) == 1
    assert "and also in each step:\n  phase 2, views: nonzero at views.py:7\n" in capsys.readouterr().out


@pytest.mark.parametrize("phase", [1, 2])
def test_a_step_is_timed_as_it_is_taken(phase: int) -> None:
    """On a CPU here."""
    made = config("batch_size=4", "switch=fixed", "switch.at=0", "runtime.precision=fp32")
    assert 0 < timed_step(made, phase, Sizes(8, 8, 3), "cpu", steps=6) < 10
