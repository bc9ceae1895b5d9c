"""Baselines, marks and protocols of a table: who is compared with whom, and what stands out."""

from __future__ import annotations

import io
import statistics

import pytest
from rich.console import Console

from rela_cli.commands import table
from rela_cli.errors import ConfigError, RelaError
from rela_cli.report.grids import cells
from rela_cli.report.grids.screen import print_rich
from rela_cli.report.page import html
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import Protocol
from rela_cli.report.tables import tables
from tests.report.made_runs import Make, cell, make, markdown_rows, records, shown

__all__ = ["make"]  # a fixture


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


def test_what_most_settings_share_is_left_out_on_a_screen_and_kept_in_files(make: Make, tmp_path, capsys, monkeypatch):
    mixed(make)
    assert "patches switch=never transport=whitening" in shown(tmp_path, capsys, "--format=md")
    runs = tables.results_of(collect([tmp_path / "outputs"], []))
    page = html.grids_html(tables.score_grids(runs, tables.protocols_of(runs)))
    assert "unless said otherwise: switch=never transport=whitening" in page and "<br>switch=never" not in page
    assert page.count("<h3>") == 3, "a broad table is one for each protocol"
    monkeypatch.setattr(html, "BROAD", 20)
    assert html.grids_html(tables.score_grids(runs, tables.protocols_of(runs))).count("<h3>") == 1


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
