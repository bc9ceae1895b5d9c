"""The table says what the runs say: who is averaged, who is compared, and what is missing."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rela_cli.commands import table
from rela_cli.errors import ConfigError, RelaError
from rela_cli.report.grids import cells, formats
from rela_cli.report.grids.screen import print_rich, speakable
from rela_cli.report.page import html
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import Protocol
from rela_cli.report.tables import tables
from rela_cli.store.files import write_json
from tests.conftest import Rela

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "digits", "target": "rela_cli.data.Digits", "limit": None},
    "learner": {"name": "resnet18", "target": "rela_cli.learners.resnet18", "width": 8},
    "method": {"name": "simclr", "target": "rela_cli.methods.SimCLR", "view1": {"crop_scale": [0.08, 1.0]}},
    "optimizer": {"name": "adamw", "lr": 0.001},
    "epochs": 30,
    "batch_size": 64,
    "version": 1,
}
RELA_SETTINGS: dict[str, Any] = {
    "transport": {"name": "whitening", "max_dim": 64},
    "matching": {"name": "cosine", "transfer": "trained", "view": {"flip_p": 0.5}},
    "switch": {"name": "never"},
}
Make = Callable[..., Path]
Record = dict[str, Any]


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set; a group's name alone makes it a group without options."""
    settings = copy.deepcopy(settings)
    for key, value in changes.items():
        *groups, last = key.split(".")
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = {"name": value} if isinstance(inner.get(last), dict) else value
    return settings


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes one result.json below tmp_path/outputs/runs; returns its run folder."""
    count = iter(range(1000))

    def write(
        top1: float | dict[str, float] = 0.8,
        prior: str = "none",
        budget: float = 0.5,
        seed: int = 0,
        changes: dict[str, Any] | None = None,
        untrained: float | None = None,
        prior_alone: float | None = None,
        **fields: Any,
    ) -> Path:
        rela = {} if prior == "none" else {"prior": {"name": prior, "width": 64}, **RELA_SETTINGS}
        settings = changed({**SETTINGS, **rela, "budget": budget, "seed": seed}, changes or {})
        values = top1 if isinstance(top1, dict) else {"lbfgs": top1}
        result = {
            "status": "finished",
            **{group: settings[group]["name"] for group in ("dataset", "learner", "method")},
            "prior": prior,
            "transport": None if prior == "none" else "whitening",
            "budget": budget,
            "seed": seed,
            "probe": {k: {"top1": v, "network": "target" if "@target" in k else "online"} for k, v in values.items()},
            "baselines": {
                "untrained": untrained and {"lbfgs": {"top1": untrained, "network": "online"}},
                "prior_alone": prior_alone and {"lbfgs": {"top1": prior_alone, "network": "online"}},
            },
            "settings": settings,
            "steps": 330,
            "samples_seen": 21120,
            "switch_step": None,
            "peak_memory_bytes": 512e6,
            "device": "cpu",
        }
        folder = tmp_path / "outputs" / "runs" / f"run{next(count):03}"
        folder.mkdir(parents=True)
        write_json(folder / "result.json", {**result, **fields})
        return folder

    return write


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `rela table` prints for tmp_path/outputs."""
    assert table.main([str(tmp_path / "outputs"), *options]) == 0
    return capsys.readouterr().out


def records(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[Record]:
    found: list[Record] = json.loads(shown(tmp_path, capsys, "--format=json", *options))
    return found


def cell(found: list[Record], **keys: Any) -> Record:
    """The one record that has these values."""
    (one,) = [record for record in found if all(record[k] == v for k, v in keys.items())]
    return one


def markdown_rows(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table, by column."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    head, _, *body = [[field.strip() for field in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in body]


# ------------------------------------------------------------------------------------------------- averaging


def test_runs_that_differ_in_their_seed_are_averaged(make: Make, tmp_path, capsys):
    values = [0.45, 0.462, 0.441]
    for seed, value in enumerate(values):
        make(value, seed=seed)
    found = cell(records(tmp_path, capsys), kind="plain", budget=0.5)
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=0)
    assert found["std"] == pytest.approx(statistics.stdev(values), abs=0)
    assert (found["n"], found["seeds"]) == (3, [0, 1, 2])
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert row["plain"] == "45.1 ±1.1"
    assert "±: standard deviation over 3 seeds" in shown(tmp_path, capsys)


def test_a_single_run_shows_no_deviation(make: Make, tmp_path, capsys):
    make(0.45)
    assert cell(records(tmp_path, capsys), kind="plain")["std"] is None
    assert markdown_rows(shown(tmp_path, capsys, "--format=md"))[0]["plain"] == "45.0"


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"epochs": 60}, ["epochs=30", "epochs=60"]),
        ({"epochs": 100}, ["epochs=30", "epochs=100"]),  # by number, not by letter
        ({"optimizer.lr": 0.01}, ["optimizer.lr=0.001", "optimizer.lr=0.01"]),
        ({"version": 2}, ["version=1", "version=2"]),
        ({"optimizer": "sgd"}, ["optimizer=adamw", "optimizer=sgd"]),  # its options are others anyway
        (
            {"method.view1.crop_scale": [0.5, 1.0]},
            ["method.view1.crop_scale=[0.08,1]", "method.view1.crop_scale=[0.5,1]"],
        ),
    ],
)
def test_another_setting_is_a_row_of_its_own_that_says_what_differs(make: Make, tmp_path, capsys, changes, labels):
    make(0.4, seed=0)
    make(0.5, seed=1, changes=changes)
    rows = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert [row["settings"] for row in rows] == labels
    assert [row["plain"] for row in rows] == ["40.0", "50.0"]


def test_equal_settings_have_no_label(make: Make, tmp_path, capsys):
    make(0.4, seed=0)
    make(0.5, seed=1, changes={"epochs": 30.0})
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert "settings" not in row and row["plain"] == "45.0 ±7.1"


TAUGHT = "cifar10-none-resnet18-byol-b1-s0-61d4788a"


def test_a_prior_that_is_a_run_is_called_after_it(make: Make, tmp_path, capsys):
    make(0.7, prior="rela_run", changes={"prior.run": "aa"}, prior_run=TAUGHT)
    make(0.8, prior="rela_run", changes={"prior.run": "bb"}, prior_run="by-hand", prior_alone=0.6)
    found = records(tmp_path, capsys)
    assert cell(found, label="cifar10 byol 61d4788a")["mean"] == 0.7
    assert cell(found, label="by-hand", prior="by-hand")["mean"] == 0.8
    assert cell(found, label="by-hand prior alone")["mean"] == 0.6


def test_the_same_weights_are_one_prior_wherever_they_lie(make: Make, tmp_path, capsys):
    make(0.7, prior="rela_run", seed=0, changes={"prior.run": "aa"}, prior_run=TAUGHT)
    make(0.8, prior="rela_run", seed=1, changes={"prior.run": "aa"}, prior_run="a-copy")
    make(0.9, prior="rela_run", seed=2, changes={"prior.run": "aa"})  # by an older version, which did not say
    assert cell(records(tmp_path, capsys), kind="prior")["seeds"] == [0, 1, 2]


def test_an_older_run_is_named_by_its_config_unless_that_is_a_link(make: Make, tmp_path, capsys):
    for run, weights in ((f"some/where/{TAUGHT}", "aa"), ("some/where/latest", "bb")):
        folder = make(prior="rela_run", changes={"prior.run": weights})
        (folder / "config.yaml").write_text(f"prior: {{name: rela_run, run: {run}}}\n")
    labels = {record["label"] for record in records(tmp_path, capsys) if record["kind"] == "prior"}
    assert labels == {"cifar10 byol 61d4788a", "rela_run"}


def test_a_prior_is_called_as_the_reader_wants(make: Make, tmp_path, capsys):
    make(0.7, prior="rela_run", changes={"prior.run": "aa"}, prior_run=TAUGHT)
    make(0.8, prior="patches")
    names = ("--name", "cifar10 byol 61d4788a=CF10-T", "--name", "patches=ZCA patches")
    assert {"CF10-T", "ZCA patches"} <= {record["label"] for record in records(tmp_path, capsys, *names)}
    assert "CF10-T" in shown(tmp_path, capsys, *names, "--format", "md", "--cost")
    for wrong, message in (
        ("patchs=A", "no run here has such a prior, did you mean patches?"),
        ("patches", "must be PRIOR=NAME"),
        ("patches=cifar10 byol 61d4788a", "two priors would be called cifar10 byol 61d4788a"),
    ):
        with pytest.raises(ConfigError, match=message):
            shown(tmp_path, capsys, "--name", wrong)


def test_options_of_different_methods_are_no_difference(make: Make, tmp_path, capsys):
    make(0.4)
    make(0.5, changes={"method": "byol"})
    rows = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert [row["method"] for row in rows] == ["byol", "simclr"]
    assert "settings" not in rows[0]


def test_variants_of_a_prior_are_columns_of_their_own(make: Make, tmp_path, capsys):
    make(0.5, "patches", prior_alone=0.6)
    make(0.6, "patches", seed=1, changes={"switch": "fixed"}, prior_alone=0.6)
    make(0.7, "patches", changes={"transport.max_dim": 32}, prior_alone=0.4)
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert row["patches switch=fixed transport.max_dim=64"] == "60.0"
    assert row["patches switch=never transport.max_dim=64"] == "50.0"
    assert row["patches switch=never transport.max_dim=32"] == "**70.0**"
    assert row["patches transport.max_dim=64 prior alone"] == "60.0"  # the switch does not move it
    assert row["patches transport.max_dim=32 prior alone"] == "40.0"


def test_switches_with_different_options_say_so(make: Make, tmp_path, capsys):
    for at in (0.25, 0.5):
        make(at, "patches", changes={"switch": "fixed", "switch.at": at})
    heads = markdown_rows(shown(tmp_path, capsys, "--format=md"))[0]
    assert [h for h in heads if h.startswith("patches switch")] == ["patches switch.at=0.25", "patches switch.at=0.5"]


def test_a_copy_of_a_run_is_not_a_second_seed(make: Make, tmp_path, capsys):
    folder = make(0.4)
    make(0.4)
    (folder.parent / "latest").symlink_to(folder)
    problems: list[str] = []
    assert len(collect([tmp_path / "outputs"], problems)) == 1
    assert len(problems) == 1 and "run000" in problems[0] and "run001" in problems[0]


def test_the_finished_one_of_two_equal_runs_counts(make: Make, tmp_path, capsys):
    make(0.4, status="failed", probe={})
    make(0.5)
    make(0.6, status="running")
    (result,) = collect([tmp_path / "outputs"], [])
    assert result["probe"]["lbfgs"]["top1"] == 0.5


# ---------------------------------------------------------------------------------------- rows and columns


def test_column_order(make: Make, tmp_path, capsys):
    for prior in ("clip", "patches", "random", "checkpoint", "random_learner", "none"):
        make(0.5, prior)
    heads = list(markdown_rows(shown(tmp_path, capsys, "--format=md"))[0])
    priors = ["random_learner", "random", "patches", "checkpoint", "clip"]
    pairs = [head for prior in priors for head in (prior, f"{prior} prior alone")]
    assert heads == ["budget", "untrained", "plain", *pairs, r"plain\*"]


def test_row_order_and_constant_labels(make: Make, tmp_path, capsys):
    make(0.1, budget=0.5)
    make(0.2, budget=0.1)
    make(0.3, budget=0.1, changes={"dataset": "cifar10"})
    text = shown(tmp_path, capsys, "--format=md")
    cifar, digits = text.index("**cifar10 · resnet18 · simclr · top-1 % by lbfgs"), text.index("**digits · resnet18")
    assert cifar < digits
    assert [row["budget"] for row in markdown_rows(text)] == ["0.1"]
    assert [(row["budget"], row["plain"]) for row in markdown_rows(text[digits:])] == [("0.1", "20.0"), ("0.5", "10.0")]
    assert "learner" not in markdown_rows(text)[0]


def test_budgets_are_compared_rounded(make: Make, tmp_path, capsys):
    make(0.4, budget=0.3)
    make(0.5, budget=0.1 + 0.2, seed=1)
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert (row["budget"], row["plain"]) == ("0.3", "45.0 ±7.1")


def test_plain_on_everything_stars_the_rows_of_every_budget(make: Make, tmp_path, capsys):
    make(0.9, budget=1.0)
    make(0.9, budget=1.0, seed=1)
    make(0.4, budget=0.1)
    make(0.5, "patches", budget=0.5)
    make(0.6, budget=0.1, changes={"epochs": 60})  # all else is not equal
    rows = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert [(row["settings"], row["budget"], row[r"plain\*"]) for row in rows] == [
        ("epochs=30", "0.1", "90.0 ±0.0"),
        ("epochs=60", "0.1", "—"),
        ("epochs=30", "0.5", "90.0 ±0.0"),
    ]


def test_starred_runs_alone_still_show(make: Make, tmp_path, capsys):
    make(0.9, budget=1.0)
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert (row["budget"], row[r"plain\*"]) == ("1", "90.0")


def test_rela_on_everything_has_a_row_at_budget_one(make: Make, tmp_path, capsys):
    make(0.9, budget=1.0)
    make(0.95, "patches", budget=1.0)
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert (row["plain"], row["patches"]) == ("90.0", "**<u>95.0</u>**")


# ------------------------------------------------------------------------------------------ baselines, marks


def test_untrained_is_one_value_a_seed_and_prior_alone_one_for_all(make: Make, tmp_path, capsys):
    for seed, value in enumerate((0.70, 0.72, 0.70)):  # seeds 0 and 2 agree by chance: still three measurements
        make(0.5, budget=0.5, seed=seed, untrained=value)
        make(0.5, "patches", budget=0.1, seed=seed, untrained=value, prior_alone=0.6)
    found = records(tmp_path, capsys)
    for budget in (0.1, 0.5):
        untrained = cell(found, kind="untrained", budget=budget)
        assert untrained["n"] == 3 and untrained["mean"] == pytest.approx(statistics.fmean((0.70, 0.72, 0.70)))
        alone = cell(found, kind="prior_alone", budget=budget)
        assert (alone["mean"], alone["std"], alone["n"]) == (0.6, None, 1)


def test_a_prior_alone_that_moves_with_the_seed_is_averaged(make: Make, tmp_path, capsys):
    for seed, value in enumerate((0.6, 0.7)):
        make(0.5, "random_learner", seed=seed, prior_alone=value)
    alone = cell(records(tmp_path, capsys), kind="prior_alone")
    assert (alone["n"], alone["std"]) == (2, pytest.approx(statistics.stdev((0.6, 0.7))))


def test_bold_is_the_best_trained_cell_and_underlined_is_above_the_star(make: Make, tmp_path, capsys):
    make(0.70, budget=1.0)
    make(0.60, untrained=0.3)
    make(0.80, "patches", prior_alone=0.95)
    make(0.7001, "random", prior_alone=0.2)
    (row,) = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert row == {
        "budget": "0.5",
        "untrained": "30.0",
        "plain": "60.0",
        "random": "<u>70.0</u>",
        "random prior alone": "20.0",
        "patches": "**<u>80.0</u>**",
        "patches prior alone": "<u>95.0</u>",  # better than the star, but not trained: never bold
        r"plain\*": "70.0",
    }


def test_without_a_star_nothing_is_underlined(make: Make, tmp_path, capsys):
    make(0.6)
    make(0.8, "patches", prior_alone=0.9)
    rows = shown(tmp_path, capsys, "--format=md").split("\n\n")[1]
    assert "**80.0**" in rows and "<u>" not in rows


def test_rich_styles_on_a_terminal_and_marks_elsewhere(make: Make, tmp_path, capsys):
    make(0.70, budget=1.0)
    make(0.60)
    make(0.80, "patches", prior_alone=0.75)
    runs = tables.results_of(collect([tmp_path / "outputs"]))
    grids = tables.score_grids(runs, tables.protocols_of(runs))
    screen = io.StringIO()
    print_rich(grids, [], Console(file=screen, force_terminal=True, color_system="standard", width=120))
    assert "\x1b[1;4;32m80.0\x1b[0m" in screen.getvalue() and "\x1b[4m75.0\x1b[0m" in screen.getvalue()
    plain = shown(tmp_path, capsys)
    assert plain.splitlines()[4].split() == ["0.5", "60.0", "80.0", "best", "↑", "75.0", "↑", "70.0"]
    assert "↑: better than plain*" in plain and "bold" not in plain and "underlined" not in plain


def test_the_best_is_of_one_budget_and_of_several(make: Make, tmp_path, capsys):
    """plain on everything has a budget of its own, and one cell alone is the best of nothing."""
    make(0.9, budget=1.0)
    make(0.6)
    make(0.7, "patches")
    make(0.5, budget=0.2)
    found = records(tmp_path, capsys)
    assert [(r["budget"], r["kind"]) for r in found if r["best"]] == [(0.5, "prior")]
    lines = shown(tmp_path, capsys).splitlines()
    assert next(line for line in lines if line.startswith("0.5")).split() == ["0.5", "60.0", "70.0", "best", "90.0"]
    assert next(line for line in lines if line.startswith("0.2")).split() == ["0.2", "50.0", "—", "90.0"]


def test_marks_are_words_where_nothing_can_be_bold(make: Make, tmp_path, capsys, monkeypatch):
    make(0.6)
    make(0.7, "patches")
    monkeypatch.setenv("TERM", "dumb")
    grids = tables.score_grids(tables.results_of(collect([tmp_path / "outputs"])), [Protocol("lbfgs", "online")])
    screen = io.StringIO()
    print_rich(grids, [], Console(file=screen, force_terminal=True, width=80))
    assert "70.0 best" in screen.getvalue() and "\x1b" not in screen.getvalue() and "bold" not in screen.getvalue()


MARKS = ("plain*:", "best:", "↑:", "±", "—:", "†:", "(n)", "n:")


def test_only_what_occurs_has_a_footnote(make: Make, tmp_path, capsys):
    make(0.6, untrained=0.2)
    text = shown(tmp_path, capsys)
    assert [mark for mark in MARKS if mark in text] == ["n:"]
    assert "no result: plain*" in text
    make(0.7, "patches", prior_alone=0.5)
    make(0.8, "patches", 0.2, prior_alone=0.5)
    text = shown(tmp_path, capsys)
    assert [mark for mark in MARKS if mark in text] == ["best:", "—:", "n:"]
    make(0.65, budget=1.0)
    make(0.75, "patches", seed=1, prior_alone=0.5)
    text = shown(tmp_path, capsys)
    assert [mark for mark in MARKS if mark in text] == ["plain*:", "best:", "↑:", "±", "—:"]
    assert "72.5 ±3.5" in text and "over 2 seeds; without ±: 1 seed" in text
    make(0.77, "patches", 0.2, seed=1, prior_alone=0.5)
    make(0.78, "patches", 0.2, seed=2, prior_alone=0.5)
    text = shown(tmp_path, capsys)
    assert "72.5 ±3.5 (2)" in text and "50.0 (" not in text  # no seed moves the prior alone


# ------------------------------------------------------------------------------------------------- missing


def test_unfinished_runs_are_missing_cells_and_counted(make: Make, tmp_path, capsys):
    make(0.8)
    make(0.7, "patches", status="failed")
    make(0.7, "patches", seed=1, status="running", probe={})
    text = shown(tmp_path, capsys, "--format=md")
    assert markdown_rows(text)[0]["patches"] == "—"
    assert "2 runs (1 failed, 1 running)" in text


def test_a_run_without_labels_is_named_and_its_cost_shown(make: Make, tmp_path, capsys):
    make(probe={}, probe_skipped="the dataset has no labels", seconds={"train": 20.0})
    text = shown(tmp_path, capsys, "--format=md", "--cost")
    assert "not probed: 1 run (the dataset has no labels)" in text and "20 s" in text
    assert "no run has been probed" in shown(tmp_path, capsys)
    (star, *_) = [r for r in records(tmp_path, capsys, "--cost") if r["kind"] == "plain"]
    assert (star["n"], star["mean"], star["seconds_train"]) == (0, None, 20.0)


def test_nan_is_missing(make: Make, tmp_path, capsys):
    make(float("nan"))
    make(0.5, "patches")
    assert cell(records(tmp_path, capsys), kind="plain")["mean"] is None


def test_broken_files_are_named_and_the_rest_shown(make: Make, tmp_path, capsys):
    make(0.8)
    no_prior = (make(0.1, seed=1, status="failed") / "result.json").read_text().replace('"none"', '"patches"')
    broken = {"cut": '{"status": "fin', "list": "[]", "odd": '{"status": "x"}', "bytes": "\x00", "prior": no_prior}
    for name, text in broken.items():
        folder = tmp_path / "outputs" / "runs" / name
        folder.mkdir()
        (folder / "result.json").write_text(text)
    text = shown(tmp_path, capsys, "--format=md")
    assert markdown_rows(text)[0]["plain"] == "80.0"
    for name in broken:
        assert f"{name}/result.json" in text


def test_run_folders_without_a_result_are_counted(make: Make, tmp_path, capsys):
    make(0.8)
    for name in ("a", "b"):
        (tmp_path / "outputs" / "runs" / name).mkdir()
        (tmp_path / "outputs" / "runs" / name / "manifest.json").write_text("{}")
    assert "no result.json yet in 2 run folders: a, b" in shown(tmp_path, capsys)


def test_nothing_found_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(RelaError, match="rela train") as caught:
        collect([tmp_path])
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(RelaError, match="no such file or folder"):
        collect([tmp_path / "nowhere"])


def test_problems_go_to_the_log_when_nobody_takes_them(make: Make, tmp_path, caplog):
    make(0.8)
    collect([tmp_path / "outputs", tmp_path / "nowhere"])
    assert "nowhere: no such file or folder" in caplog.text


@pytest.mark.parametrize("where", ["outputs", "outputs/runs", "outputs/runs/run000", "outputs/runs/run000/result.json"])
def test_every_kind_of_path(make: Make, tmp_path, where):
    make(0.8)
    (result,) = collect([tmp_path / where])
    assert result["path"] == str((tmp_path / "outputs/runs/run000").resolve())


def test_print_table_of_a_sweep(make: Make, tmp_path, capsys):
    make(0.1, seed=5)
    folders = [make(0.8), make(0.6, seed=1)]
    tables.print_table(folders)
    assert "70.0 ±14.1" in capsys.readouterr().out
    tables.print_table([tmp_path / "gone"])  # a sweep in which all cells failed must not end in an error
    assert "no table" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ protocols


def test_a_row_for_each_protocol_and_network(make: Make, tmp_path, capsys):
    make({"knn": 0.5, "rela": 0.6, "lbfgs": 0.7, "lbfgs@target": 0.8}, untrained=0.3)
    rows = markdown_rows(shown(tmp_path, capsys, "--format=md"))
    assert [(row["protocol"], row["network"], row["plain"]) for row in rows] == [
        ("rela", "online", "60.0"),
        ("lbfgs", "online", "70.0"),
        ("lbfgs", "target", "80.0"),
        ("knn", "online", "50.0"),
    ]
    text = shown(tmp_path, capsys)
    for said in (
        "lbfgs: linear, by L-BFGS",
        "online: the network that was trained",
        "target: the method's slow average",
    ):
        assert said in " ".join(text.split())
    found = records(tmp_path, capsys)
    assert cell(found, kind="plain", protocol="lbfgs", network="target")["mean"] == 0.8
    assert cell(found, kind="untrained", protocol="lbfgs", network="target")["mean"] == 0.3  # it has one network only
    assert cell(found, kind="untrained", protocol="knn")["mean"] is None


def test_protocols_have_tables_of_their_own_where_one_is_too_wide(make: Make, tmp_path, capsys, monkeypatch):
    for prior in ("none", "random", "patches", "clip_rn50"):
        for seed in (0, 1):
            make({"rela": 0.5 + seed / 100, "knn": 0.6 + seed / 100}, prior, seed=seed)
    assert shown(tmp_path, capsys).count("top-1 %") == 1
    for prior in ("none", "random", "patches", "clip_rn50"):
        for seed in (0, 1):
            for budget in (0.1, 0.2, 1.0):
                make({"rela": 0.5 + seed / 100, "knn": 0.6 + seed / 100}, prior, budget, seed=seed)
    text = shown(tmp_path, capsys)
    assert text.count("top-1 % by rela (online)") == 1 and "top-1 % by knn" not in text
    assert "also measured: knn; --protocol=all shows them too" in text
    text = shown(tmp_path, capsys, "--protocol=all")
    assert text.count("top-1 % by rela (online)") == text.count("top-1 % by knn (online)") == 1
    assert text.count("±: standard deviation over 2 seeds") == 1  # one footnote for both
    monkeypatch.setenv("COLUMNS", "140")
    assert shown(tmp_path, capsys).count("top-1 %") == 1


def mixed(make: Make) -> None:
    """Ten kinds of runs, as an outputs folder holds them after a week."""
    three = {"rela": 0.41, "lbfgs": 0.52, "knn": 0.43}
    for change in ({}, {"matching.targets": "live"}, {"switch": "fixed"}, {"transport": "pca"}):
        make(three, "patches", changes=change, untrained=0.3, prior_alone=0.9)
    make(three, "patches", seed=1, untrained=0.3, prior_alone=0.9)
    make(three, "patches", budget=0.2, untrained=0.3, prior_alone=0.9)
    make(three, "embedded", prior_alone=0.95)
    make(three, "embedded", changes={"method": "byol"}, prior_alone=0.95)
    make({}, "patches", seed=2, status="failed")
    make(three, "none")
    make(three, "none", budget=1.0)
    make(three, "none", changes={"epochs": 60})


def test_ten_mixed_runs_have_one_line_a_row_at_80_columns(make: Make, tmp_path, capsys, monkeypatch):
    mixed(make)
    text = shown(tmp_path, capsys)
    table = text[: text.index("best: ")].splitlines()
    assert max(map(len, text.splitlines())) <= 80
    assert table[0] == "digits · resnet18 · top-1 % by rela (online)"
    names = [line.split("  ")[0] for line in table[5:]]
    assert names == [
        "plain",
        "patches live",
        "patches switch=fixed",
        "patches",
        "patches transport=pca",
        "embedded",
        "plain*",
    ]
    said = " ".join(text.split())
    assert "unless said otherwise: switch=never transport=whitening epochs=30" in said
    assert "also measured: lbfgs, knn; --protocol=all shows them too" in said
    assert "not finished, shown as missing: 1 run (1 failed)" in said


def test_what_most_settings_share_is_left_out_on_a_screen_and_kept_in_files(make: Make, tmp_path, capsys):
    mixed(make)
    assert "patches switch=never transport=whitening" in shown(tmp_path, capsys, "--format=md")
    runs = tables.results_of(collect([tmp_path / "outputs"], []))
    page = html.grids_html(tables.score_grids(runs, tables.protocols_of(runs)))
    assert "unless said otherwise: switch=never transport=whitening" in page and "<br>switch=never" not in page


def test_rows_of_many_labels_stand_below_a_line_that_says_them() -> None:
    labels = [(method, "epochs=60", budget, run) for method in ("byol", "simclr") for budget in "12" for run in "ab"]
    found = ((cells.Cell("1,234"), cells.Cell("5.67 min")),) * len(labels)
    grid = cells.Grid("cost", ("method", "settings", "budget", "run"), ("steps", "time"), tuple(labels), found)
    screen = io.StringIO()
    print_rich([grid], [], Console(file=screen, width=46))
    lines = screen.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[3:-1:3]] == [
        "byol · epochs=60 · budget 1",
        "byol · epochs=60 · budget 2",
        "simclr · epochs=60 · budget 1",
        "simclr · epochs=60 · budget 2",
    ]
    assert lines[4].split() == ["a", "1,234", "5.67", "min"] and lines[4].startswith("  a")


def test_data_sets_have_tables_of_their_own_without_what_is_not_theirs(make: Make, tmp_path, capsys):
    make(0.8, "patches")
    make(0.7, "random", changes={"dataset": "cifar10"})
    make({}, "clip", changes={"dataset": "photos"}, probe_skipped="the dataset has no labels")
    text = shown(tmp_path, capsys)
    cifar, digits = text.index("cifar10 · "), text.index("digits · ")
    assert "random" in text[cifar:digits] and "patches" not in text[cifar:digits]
    assert "photos" not in text and "clip" not in text
    assert "not probed: 1 run (the dataset has no labels)" in text


def test_rows_become_columns_where_columns_are_too_many(make: Make, tmp_path, capsys):
    priors = ("random", "patches", "clip_rn50", "clip_vitb16", "dinov2_vits14")
    for i, prior in enumerate(priors):
        make(0.5 + i / 100, prior, prior_alone=0.7)
    lines = shown(tmp_path, capsys).splitlines()
    assert lines[1].split() == ["budget", "0.5"]
    assert [line.split()[:2] for line in lines if line.startswith("patches")] == [
        ["patches", "51.0"],
        ["patches", "prior"],
    ]
    assert max(map(len, lines)) <= 80


def test_protocol_and_network_can_be_chosen(make: Make, tmp_path, capsys):
    make({"knn": 0.5, "lbfgs": 0.7, "lbfgs@target": 0.8})
    chosen = {(r["protocol"], r["network"]) for r in records(tmp_path, capsys, "--protocol=lbfgs", "--network=target")}
    assert chosen == {("lbfgs", "target")}
    with pytest.raises(RelaError, match=r"knn \(online\), lbfgs \(online\), lbfgs \(target\)"):
        table.main([str(tmp_path / "outputs"), "--protocol=rela"])


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--format=lates"], "did you mean latex?"),
        (["--protocol=nkn"], "did you mean knn?"),
        (["--network=onlin"], "did you mean online?"),
        (["--formt=md"], "did you mean --format?"),
        (["--format"], "expected one argument"),
    ],
)
def test_usage_errors_name_the_nearest(make: Make, tmp_path, options, hint):
    make(0.8)
    with pytest.raises(ConfigError) as caught:
        table.main([str(tmp_path / "outputs"), *options])
    assert hint in str(caught.value) and caught.value.exit_code == 2


# --------------------------------------------------------------------------------------------------- formats


def test_csv_and_json_hold_the_same_in_full_precision(make: Make, tmp_path, capsys):
    make(1 / 3, seed=0)
    make(2 / 7, seed=3)
    as_json = cell(records(tmp_path, capsys), kind="plain")
    rows = list(csv.DictReader(io.StringIO(shown(tmp_path, capsys, "--format=csv"))))
    (as_csv,) = [row for row in rows if row["kind"] == "plain"]
    assert float(as_csv["mean"]) == as_json["mean"] == statistics.fmean((1 / 3, 2 / 7))
    assert float(as_csv["std"]) == as_json["std"]
    assert (as_csv["seeds"], as_json["seeds"]) == ("0 3", [0, 3])
    assert [row["mean"] for row in rows if row["kind"] == "plain_star"] == [""]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_csv_text_is_no_formula_and_numbers_are_numbers(make: Make, tmp_path, capsys, start):
    for prior, value in (("none", 0.6), (f"{start}1+1", 0.5)):
        make(value, prior)
    text = shown(tmp_path, capsys, "--format=csv", "--differences")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    (row,) = [row for row in rows if row["kind"] == "prior"]
    assert row["prior"] == row["label"] == f"'{start}1+1"
    assert float(row["minus_plain"]) == pytest.approx(-0.1)
    assert json.loads(shown(tmp_path, capsys, "--format=json"))[2]["prior"] == f"{start}1+1"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_csv_names_and_lists_are_no_formulas(start: str) -> None:
    """Wherever text stands: in a head, a cell, or first in a list. A negative number stays a number."""
    text = f"{start}HYPERLINK(1)"
    lines = list(
        csv.reader(io.StringIO(formats.to_csv([{text: text, "list": [text, "b"], "minus": -0.1}]), newline=""))
    )
    assert lines == [[f"'{text}", "list", "minus"], [f"'{text}", f"'{text} b", "-0.1"]]


def test_csv_names_make_no_line_of_their_own() -> None:
    """A carriage return ends a line for many readers, and what stands behind it would be a formula."""
    text = formats.to_csv([{"name": "a\r=1+1"}, {"name": "\r=1+1"}])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["name"], [r"a\r=1+1"], [r"\r=1+1"]]


def test_csv_notes_stay_out_of_the_data(make: Make, tmp_path, capsys):
    make(0.8)
    make(0.8, seed=1, status="failed")
    assert table.main([str(tmp_path / "outputs"), "--format=csv"]) == 0
    streams = capsys.readouterr()
    assert "not finished" in streams.err and "not finished" not in streams.out


def test_latex_escapes_and_marks(make: Make, tmp_path, capsys):
    make(0.70, budget=1.0)
    make(0.80, "random_learner", seed=0)
    make(0.82, "random_learner", seed=1, changes={"dataset.limit": None})
    make(0.5, changes={"dataset.limit": r"50%_#&{a}~\b^"})
    text = shown(tmp_path, capsys, "--format=latex")
    assert r"random\_learner prior alone" in text
    assert r"\underline{81.0} $\pm$1.4" in text
    assert r"dataset.limit=50\%\_\#\&\{a\}\textasciitilde{}\textbackslash{}b\textasciicircum{}" in text
    assert r"top-1 \% by" in text and "---" in text and "±" not in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3 and {row.replace(r"\&", "").count("&") for row in rows} == {len(columns) - 1}


def test_markdown_escapes(make: Make, tmp_path, capsys):
    make(0.8, changes={"dataset.limit": "a|b"})
    make(0.8, changes={"dataset.limit": "c"})
    assert r"dataset.limit=a\|b" in shown(tmp_path, capsys, "--format=md")


@pytest.mark.parametrize("width", [80, 120])
def test_rich_fits_the_screen_and_loses_nothing(make: Make, tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    priors = ("none", "random", "patches", "random_learner", "clip")
    for i, prior in enumerate(priors):
        for seed in range(2):
            make(0.5 + 0.01 * i + 0.002 * seed, prior, seed=seed, prior_alone=0.7 + 0.01 * i)
    text = shown(tmp_path, capsys)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("±0.1") == len(priors) and "±: standard deviation over 2 seeds" in " ".join(text.split())
    assert "no result: untrained, plain*" in text
    for i in range(len(priors)):
        assert f"{50.1 + i:.1f}" in text
    for i in range(1, len(priors)):
        assert f"{70 + i}.0" in text
    assert "…" not in text


@pytest.mark.parametrize(
    "environment",
    [{"COLUMNS": "0"}, {"COLUMNS": "1", "LINES": "0"}, {"COLUMNS": "²", "TERM": "dumb"}, {"COLUMNS": "-5"}],
)
def test_a_screen_of_no_size_is_none(make: Make, tmp_path, capsys, rela: Rela, environment):
    make(0.8, untrained=0.3)
    make(0.7, "patches", prior_alone=0.6)
    assert rela("table", env=environment).stdout == shown(tmp_path, capsys)


def test_a_screen_of_no_size_has_help_and_a_width_that_fits_is_kept(make: Make, tmp_path, rela: Rela):
    assert "--equal-cost" in rela("table", "--help", env={"COLUMNS": "1"}).stdout
    for prior in ("none", "random", "patches", "clip"):
        make(0.8, prior, prior_alone=0.6)
    assert max(map(len, rela("table", env={"COLUMNS": "60"}).stdout.splitlines())) <= 60


def test_labels_are_no_markup(make: Make, tmp_path, capsys):
    make(0.8, changes={"method.view1.crop_scale": ["red", "bold"]})
    make(0.8)
    assert "[red,bold]" in shown(tmp_path, capsys)


def test_speakable():
    assert speakable("45.1 ±0.6 · — é", "ascii") == "45.1 +/-0.6 - -- ?"
    assert speakable("45.1 ±0.6 —", "utf-8") == "45.1 ±0.6 —"


@pytest.mark.parametrize("form", ["rich", "md", "latex", "csv", "json"])
def test_ascii_screen(make: Make, tmp_path, form):
    make(0.8, untrained=0.3)
    make(0.7, seed=1)
    make(0.7, "prior-é")
    code = "import sys; from rela_cli.commands.table import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path / "outputs"), f"--format={form}", "--cost"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    if form in ("rich", "md"):
        assert "+/-7.1" in text and "--" in text


def test_the_report_needs_neither_torch_nor_hydra():
    code = (
        "import sys; import rela_cli.report.tables.tables; print([m for m in ('torch', 'hydra') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


# ------------------------------------------------------------------------------------------------------ cost


def cost_fields(factor: float = 1.0) -> dict[str, Any]:
    return {
        "seconds": {"extract": 4.0 * factor, "transport": 1.0, "train": 95.0, "probe": 2.0},
        "seconds_now": {"extract": 0.0, "transport": 0.0, "train": 95.0, "probe": 2.0},
        "flops": {"extract": 1.5e9, "transport": 0.5e9, "train": 1.234e12, "probe": 1e6},
    }


def test_cost_counts_the_prior_pass_and_not_the_probe(make: Make, tmp_path, capsys):
    make(0.8, "patches", **cost_fields())
    make(0.8, "patches", seed=1, **cost_fields(2.0), switch_step=165)
    found = cell(records(tmp_path, capsys, "--cost"), kind="prior")
    assert (found["seconds_extract"], found["seconds_total"]) == (6.0, 102.0)  # though the cache made it 0 now
    assert found["flops_total"] == 1.236e12
    assert (found["steps"], found["switch_step"], found["peak_memory_bytes"]) == (330, 165, 512e6)
    assert "seconds_total" not in records(tmp_path, capsys)[0]


def test_cost_table_is_for_humans(make: Make, tmp_path, capsys):
    make(0.8, "patches", **cost_fields())
    make(0.8, budget=1.0, seconds={"train": 5400.0}, flops={"train": 999.6e9}, peak_memory_bytes=None)
    text = shown(tmp_path, capsys, "--format=md", "--cost")
    rela, plain = markdown_rows("\n\n".join(text.split("\n\n")[3:]))
    assert rela == {
        "budget": "0.5",
        "run": "patches",
        "extract": "4 s 1.5 GFLOP",
        "transport": "1 s 500 MFLOP",
        "train": "1.58 min 1.23 TFLOP",
        "total": "1.67 min 1.24 TFLOP",
        "probe": "2 s 1 MFLOP",
        "samples seen": "21,120",
        "steps": "330",
        "switch at step": "never",
        "peak memory": "512 MB",
    }
    assert (plain["run"], plain["extract"], plain["train"]) == (r"plain\*", "—", "1.5 h 1 TFLOP")
    assert (plain["switch at step"], plain["peak memory"]) == ("—", "—")
    assert "cost" not in shown(tmp_path, capsys, "--format=md")


def test_cost_names_the_device_when_there_are_two(make: Make, tmp_path, capsys):
    make(0.8, budget=0.1, device="cpu")
    make(0.8, budget=0.2, device="cuda")
    text = shown(tmp_path, capsys, "--format=md", "--cost")
    assert [row["device"] for row in markdown_rows("\n\n".join(text.split("\n\n")[3:]))] == ["cpu", "cuda"]


def test_a_prior_that_saw_the_labels_is_marked_and_never_best(make: Make, tmp_path, capsys):
    make(0.70, untrained=0.3)
    make(0.60, budget=1.0)
    make(0.75, prior="random", prior_alone=0.5)
    make(0.95, prior="cheat", prior_alone=0.99, prior_saw_labels=True)
    row = markdown_rows(shown(tmp_path, capsys, "--format", "md"))[0]
    assert row["cheat"] == "95.0†"
    assert row["cheat prior alone"] == "99.0†"
    assert row["random"] == "**<u>75.0</u>**" and row[r"plain\*"] == "60.0"
    text = shown(tmp_path, capsys, "--format", "md")
    assert "†: its prior was trained with the labels of this very dataset" in text
    found = records(tmp_path, capsys)
    assert cell(found, prior="cheat", kind="prior")["prior_saw_labels"] is True
    assert cell(found, prior="cheat", kind="prior")["best"] is False
    assert cell(found, prior="random", kind="prior")["best"] is True
    assert r"95.0\textdagger{}" in shown(tmp_path, capsys, "--format", "latex")


def test_of_files_in_older_results_nobody_knows_the_labels(make: Make, tmp_path, capsys):
    """They do not say it, so a file of the user's own is marked; one whose labels they name, or said since, is not."""
    make(0.70)
    make(0.71, prior="checkpoint")
    make(0.72, prior="clip_vitb16", called={"file": "own.pth"})
    make(0.73, prior="timm")
    make(0.74, prior="exported", labels_unknown=False)
    row = markdown_rows(shown(tmp_path, capsys, "--format", "md"))[0]
    numbers = {column: row[column].strip("*") for column in row if column in ("checkpoint", "timm", "exported")}
    assert numbers == {"checkpoint": "71.0?", "timm": "73.0", "exported": "74.0"}
    assert [value for value in row.values() if value.startswith("72")] == ["72.0?"]


def test_without_such_a_prior_the_legend_does_not_speak_of_one(make: Make, tmp_path, capsys):
    make(0.70)
    make(0.75, prior="random", prior_alone=0.5)
    assert "†" not in shown(tmp_path, capsys, "--format", "md")
