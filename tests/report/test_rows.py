"""Which runs are averaged, which make a row of their own, and how rows and columns stand."""

from __future__ import annotations

import statistics

import pytest

from rela_cli.errors import ConfigError
from rela_cli.report.results.collect import collect
from tests.report.made_runs import Make, cell, make, markdown_rows, records, shown

__all__ = ["make"]  # a fixture


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
