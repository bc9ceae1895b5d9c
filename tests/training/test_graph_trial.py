"""runtime.step=auto: a process of its own tries a graph, whatever happens there; what came of it is kept."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rela_cli.config.schema import Config
from rela_cli.training import graph_trial
from rela_cli.training.graph import GraphedStep
from rela_cli.training.graph_trial import trial_config, tried, with_step
from rela_cli.training.trainer import Trainer
from tests.factories import config
from tests.promises.harness import words
from tests.training.test_graph import broken, by_tape

WELL = 'print(\'{"why": ""}\')'
Child = Callable[[str], Path]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """On a made-up card: what the process that tries does, as Python; the file that has a line for each of them."""
    starts = tmp_path / "starts"
    starts.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(graph_trial, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(graph_trial, "key_of", lambda method: {"gpu": "a card", "method": method.name})

    def does(what: str) -> Path:
        noted = f"import os, signal, sys, time; open({str(starts)!r}, 'a').write('one\\n'); {what}"
        monkeypatch.setattr(graph_trial, "command", lambda method: [sys.executable, "-S", "-c", noted])
        return starts

    return does


def step_of(made: Config) -> str:
    return with_step(made).runtime.step


def started(starts: Path) -> int:
    return len(starts.read_text().splitlines())


def kept(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("cache/rela/cuda_graphs/*.json"))


def test_on_a_cpu_nothing_is_tried_or_said(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert config().runtime.step == "auto" and step_of(config()) == "eager"
    assert capsys.readouterr().err == ""


def test_a_trial_that_goes_well_is_paid_for_once_a_method(child: Child, tmp_path: Path, capsys: Any) -> None:
    starts = child(WELL)
    assert [step_of(config(f"seed={seed}")) for seed in (0, 1)] == ["graph"] * 2
    assert (started(starts), len(kept(tmp_path)), capsys.readouterr().err) == (1, 1, "")
    assert step_of(config("method=byol")) == "graph" and started(starts) == 2
    assert step_of(config("runtime.step=eager")) == "eager" and started(starts) == 2


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11 ended it (Segmentation fault)"),
        ("sys.exit(139)", "exit status 139: it said nothing"),
        ("sys.exit('CUDA error: an illegal memory access was encountered')", "exit status 1: CUDA error: an illegal"),
        ("time.sleep(60)", "it was not done after 0.7 s"),
        ('print(\'{"why": "a replay gives loss 1"}\')', "a replay gives loss 1"),
        ("print('hello')", "it answered hello"),
    ],
)
def test_whatever_happens_in_a_trial_the_run_goes_on_without_a_graph(
    what: str, why: str, child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(graph_trial, "LIMIT", 0.7 if "sleep" in what else 60)
    starts = child(what)
    assert [step_of(config()) for _ in range(2)] == ["eager"] * 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and why in first and started(starts) == 1
    assert str(kept(tmp_path)[0]) in first and "rela doctor --gpu method=simclr" in first
    assert "runtime.step=graph asks for it" in first
    child(WELL)
    assert graph_trial.reason_against(config(), again=True) == "" and step_of(config()) == "graph"


@pytest.mark.parametrize(
    "what",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        'print(\'{"why": "cannot be recorded (OutOfMemoryError: CUDA out of memory.)"}\')',
        "sys.exit('CUDA error: CUDA-capable device(s) is/are busy or unavailable')",
    ],
)
def test_what_says_nothing_of_graphs_is_not_kept(what: str, child: Child, tmp_path: Path, capsys: Any) -> None:
    child(what)
    assert step_of(config()) == "eager" and kept(tmp_path) == []
    assert "kept in" not in capsys.readouterr().err
    child(WELL)
    assert step_of(config()) == "graph"


def test_a_process_that_cannot_be_started_costs_nothing_either(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    child(WELL)
    monkeypatch.setattr(graph_trial, "command", lambda method: [str(tmp_path / "no-python")])
    assert step_of(config()) == "eager" and kept(tmp_path) == []
    assert "it cannot be started ([Errno 2]" in capsys.readouterr().err


def test_a_file_that_is_damaged_or_cannot_be_written_is_as_none(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = child(WELL)
    assert step_of(config()) == "graph"
    kept(tmp_path)[0].write_text("{")
    assert step_of(config()) == "graph" and started(starts) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [step_of(config()) for _ in range(2)] == ["graph"] * 2 and started(starts) == 4


def test_of_runs_that_start_at_once_one_tries_and_the_others_wait(child: Child, tmp_path: Path, capsys: Any) -> None:
    """The trial ends when the other run has been seen to wait."""
    go = tmp_path / "go"
    starts = child(f"[time.sleep(0.02) for _ in range(3000) if not os.path.exists({str(go)!r})]; {WELL}")
    found: list[str] = []
    runs = [threading.Thread(target=lambda: found.append(step_of(config()))) for _ in range(2)]
    for run in runs:
        run.start()
    said = ""
    while "waiting for a trial of CUDA graphs" not in said:
        said += capsys.readouterr().err
        assert any(run.is_alive() for run in runs), said
    go.touch()
    for run in runs:
        run.join()
    assert (found, started(starts)) == (["graph"] * 2, 1)


def test_what_speaks_against_a_graph_is_said_and_nothing_is_tried(
    child: Child, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    starts = child(WELL)
    made = config()
    theirs = replace(made, learner=replace(made.learner, target="theirs.Net"))
    for one, why in ((config("accumulate=2"), "in parts"), (theirs, "is not rela's own")):
        assert step_of(one) == "eager"
        said = capsys.readouterr().err
        assert said.startswith("rela: runtime.step=auto: ") and why in said and said.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert step_of(config("accumulate=2")) == "eager" and capsys.readouterr().err == ""
    assert started(starts) == 0


# ------------------------------------------------------------------------------------ the work of the process itself


def tiny(method: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What is tried, with heads and images that cost nothing."""
    monkeypatch.setattr(graph_trial, "SIDE", 8)
    made = trial_config(config(*words(method)).method)
    options = {**made.learner.options, "width": 4}
    return replace(made, learner=replace(made.learner, options=options))


def taped(loop: Trainer) -> GraphedStep:
    """A recorder for the CPU."""
    made = by_tape(loop).graph
    assert made is not None
    return made


@pytest.mark.parametrize(("method", "kinds"), [("simsiam", 2), ("swav", 3)])
def test_the_trial_goes_through_both_phases_and_every_branch(
    method: str, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[GraphedStep] = []

    def graphed(loop: Trainer) -> GraphedStep:
        seen.append(taped(loop))
        return seen[0]

    assert tried(tiny(method, monkeypatch), graphed) == ""
    assert len(seen[0].matched) == len(set(seen[0].matched)) == kinds


def test_the_trial_says_what_a_graph_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def graphed(loop: Trainer) -> GraphedStep:
        broken(loop, "counts")
        return taped(loop)

    assert "a replay gives loss" in tried(tiny("simsiam", monkeypatch), graphed)


def test_the_process_itself_says_that_there_is_no_gpu_here() -> None:
    """The real command line: it trains, and records nothing without a driver."""
    method = config(*words("simsiam")).method
    why, is_lasting = graph_trial.outcome(graph_trial.command(method), 300)
    assert why.startswith("the step cannot be recorded (") and is_lasting
