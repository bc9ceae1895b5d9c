"""Columns of live targets and of cached views: how they are called, and what stands beside them at equal cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rela_cli.commands.reproduce.tables import RECIPE
from rela_cli.config.compose import compose
from rela_cli.config.identity import identity_of
from rela_cli.config.reading import to_tree
from rela_cli.report.differences.paired import cost_on_axis
from rela_cli.report.figures.series import groups_of, references
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import Protocol, results_of
from rela_cli.report.results.settings import PRESET_SETTINGS, flatten
from tests.report.made_runs import Make, cell, make, records, shown

__all__ = ["make"]  # a fixture
LIVE = {"matching.targets": "live"}


@pytest.fixture
def both(make: Make) -> Make:
    """Live at 0.2 and 0.5 costs 200 and 400 and reaches 50 and 60 %; cached at 0.5 costs 200, and reaches 57 %."""
    for seed in (0, 1, 2):
        for budget, cost, top1 in ((0.2, 200, 0.5), (0.5, 400, 0.6)):
            make(top1, "embedded", budget, seed, LIVE, seconds={"extract": 10.0, "train": cost - 10.0})
        make(0.57 + seed / 100, "embedded", 0.5, seed, seconds={"extract": 10.0, "train": 190.0})
    return make


def test_a_column_is_called_live(both: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = records(tmp_path, capsys)
    assert {record["label"] for record in found if record["kind"] == "prior"} == {"embedded", "embedded live"}
    assert cell(found, label="embedded live", budget=0.5)["mean"] == pytest.approx(0.6)
    assert cell(found, label="embedded", budget=0.5)["mean"] == pytest.approx(0.58)


def test_a_live_run_alone_is_called_so_too(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(0.5, "embedded", changes=LIVE)
    assert "embedded live" in shown(tmp_path, capsys, "--format=md")


def test_a_column_says_how_many_views(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each number of views has a column of its own, beside that of the clean view alone."""
    for views, top1 in ((1, 0.5), (2, 0.6), (4, 0.7)):
        make(top1, "embedded", changes={"extract.views": views} if views > 1 else {})
    found = records(tmp_path, capsys)
    labels = {"embedded": 0.5, "embedded 2 views": 0.6, "embedded 4 views": 0.7}
    assert {record["label"] for record in found if record["kind"] == "prior"} == labels.keys()
    for label, top1 in labels.items():
        assert cell(found, label=label, budget=0.5)["mean"] == pytest.approx(top1)


def test_cached_minus_live_at_equal_cost(both: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = records(tmp_path, capsys, "--equal-cost=seconds")
    one = cell(found, label="embedded", budget=0.5)
    assert one["minus_live"] == pytest.approx(0.58 - 0.50) and one["minus_live_n"] == 3
    assert cell(found, label="embedded live", budget=0.5)["minus_live"] is None
    text = shown(tmp_path, capsys, "--equal-cost=seconds", "--format=md")
    assert "minus live, equal seconds" in text and "matching.targets=live" in text


def test_cached_minus_live_at_equal_budget(both: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cell(records(tmp_path, capsys, "--differences"), label="embedded", budget=0.5)[
        "minus_live"
    ] == pytest.approx(0.58 - 0.60)
    assert "minus live, equal budget" in shown(tmp_path, capsys, "--differences", "--format=md")


def test_outside_of_lives_range_nothing_is_made_up(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(0.6, "embedded", changes=LIVE, seconds={"train": 400.0})
    make(0.5, "embedded", seconds={"train": 200.0})
    assert "cheaper than any live run" in shown(tmp_path, capsys, "--equal-cost=seconds", "--format=md")


def test_without_live_runs_there_is_no_such_column(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(0.6)
    make(0.5, "embedded")
    assert "live" not in shown(tmp_path, capsys, "--differences", "--format=md")


def test_in_images_the_prior_sees_those_of_phase_1_again(make: Make) -> None:
    """Of 1,000 images seen, 600 in phase 1; and 300 once, for the cached features."""
    sizes: dict[str, Any] = {"samples_seen": 1000, "steps": 10, "phase1_steps": 6, "train_samples": 300}
    costs = []
    for changes in ({}, LIVE):
        folder = make(0.5, "embedded", changes=changes, **sizes)
        costs.append(cost_on_axis(results_of(collect([folder]))[0], "samples"))
    assert costs == [1300, 1900]


# --------------------------------------------------------------------------------------- experiment=best, in a word


@pytest.fixture(scope="module")
def best() -> dict[str, Any]:
    """The settings of the preset as results hold them."""
    tree = to_tree(compose(["experiment=best", "prior=embedded"]))
    flat = flatten({group: identity_of(tree[group], group) for group in ("transport", "matching", "switch")})
    return {key: value for key, value in flat.items() if key in PRESET_SETTINGS}


def test_the_preset_is_what_its_file_says(best: dict[str, Any]) -> None:
    assert best == PRESET_SETTINGS == dict(word.split("=") for word in RECIPE["best"]) | {"transport": "whitening"}


def test_the_preset_is_named_and_its_settings_are_not_listed(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others do not say what they share; one more setting is said; one setting alone is no preset."""
    words = {"matching": "geometric", "switch": "never", "transport.dims": "twice", "transport.power": 0.5}
    make(0.4, "embedded", prior_alone=0.63)
    make(0.5, "embedded", changes=words, prior_alone=0.63)
    make(0.6, "embedded", changes={**words, **LIVE}, prior_alone=0.63)
    make(0.7, "embedded", changes={**words, "transport.max_dim": 32}, prior_alone=0.63)
    make(0.3, "patches", prior_alone=0.53)
    found = {record["label"]: record["mean"] for record in records(tmp_path, capsys) if record["kind"] == "prior"}
    preset = "embedded experiment=best"
    lengths = {f"{preset} transport.max_dim=32": 0.7, f"{preset} transport.max_dim=64": 0.5}
    live = {"embedded live experiment=best transport.max_dim=64": 0.6}
    assert found == pytest.approx({"embedded": 0.4, "patches": 0.3, **lengths, **live})


def test_where_one_setting_of_it_differs_that_setting_is_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"matching": "geometric", "switch": "never", "transport.dims": "twice"}
    make(0.5, "embedded", changes={**words, "transport.power": 0.5})
    make(0.4, "embedded", changes={**words, "transport.power": 1})
    found = {record["label"] for record in records(tmp_path, capsys) if record["kind"] == "prior"}
    assert found == {"embedded transport.power=0.5", "embedded transport.power=1"}


def test_a_prior_alone_is_drawn_once_where_its_transports_leave_it(make: Make, tmp_path: Path) -> None:
    words = {"matching": "geometric", "switch": "never", "transport.dims": "twice", "transport.power": 0.5}
    make(0.5, "embedded", changes=words, prior_alone=0.63)
    make(0.4, "embedded", prior_alone=0.63)
    make(0.3, "patches", prior_alone=0.63)
    (group,) = groups_of(results_of(collect([tmp_path / "outputs"])))
    drawn = [label.text for label, kind in references(group, Protocol("lbfgs", "online")) if kind == "prior_alone"]
    assert drawn == ["patches alone 63.0", "embedded alone 63.0"]
