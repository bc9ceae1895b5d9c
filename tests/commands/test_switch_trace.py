"""The switch's trace: what a run writes down, and that another rule can be played back over it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rela_cli.commands import switch_trace
from rela_cli.config.compose import compose
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline import pipeline

WORDS = ("dataset=fake", "dataset.n=64", "dataset.n_test=16", "batch_size=8", "epochs=12", "learner.width=4")
CHEAP = ("prior=patches", "prior.patches=4", "probe.protocols=[knn]", "probe.baselines=false", "runtime.threads=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("trace")
    config = compose([*WORDS, *CHEAP, "switch=adaptive", "switch.threshold=0.995", f"paths.outputs={outputs}"])
    found = pipeline.run(config).folder
    assert found is not None
    return found


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "switch.jsonl").read_text().splitlines()]


def test_the_trace_is_one_row_a_step_of_phase_1(folder: Path) -> None:
    facts = json.loads((folder / "manifest.json").read_text())["train"]
    found = rows(folder)
    assert [row["step"] for row in found] == list(range(1, facts["phase1_steps"] + 1))
    assert 1 < facts["switch_step"] <= facts["steps"] == 96
    means = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = [row["loss"] for row in found if row["step"] <= means[0]["step"]]
    assert means[0]["loss"] == pytest.approx(sum(first) / len(first), rel=1e-5)
    assert all(row["rho"] < 0.995 for row in found), "phase 1 ends when rho has arrived"


def test_its_own_rule_leaves_where_the_run_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((folder / "manifest.json").read_text())["train"]
    assert switch_trace.main([str(folder), "threshold=0.995,0.9,0.999999"]) == 0
    head, own, earlier, later = capsys.readouterr().out.splitlines()
    assert f"left at step {facts['switch_step']}" in head
    assert f"leaves at step {facts['switch_step']}" in own and "card" not in own
    assert int(earlier.split("leaves at step ")[1]) < facts["switch_step"]
    assert "does not leave in " in later


def test_other_rules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert switch_trace.main([str(folder), "switch=fixed", "at=0.1,0.05"]) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "leaves at step 10",
        "leaves at step 5",
    ]
    assert switch_trace.main([str(folder), "switch=adaptive,never"]) == 0
    assert "switch=never: does not leave" in capsys.readouterr().out


def test_what_cannot_be_meant(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean threshold"):
        switch_trace.main([str(folder), "treshold=0.9"])
    with pytest.raises(ConfigError, match="unknown switch adaptiv, did you mean adaptive"):
        switch_trace.main([str(folder), "switch=adaptiv"])
    with pytest.raises(MissingError, match="no run"):
        switch_trace.main([str(tmp_path)])
    with pytest.raises(ConfigError, match="cannot read thres"):
        switch_trace.main([str(folder), "thres"])
