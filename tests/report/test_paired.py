"""ReLA minus plain: which runs are paired, what stands at equal cost, and where plain on everything is reached."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rela_cli.commands import table
from rela_cli.errors import ConfigError
from rela_cli.report.differences import paired
from rela_cli.report.grids.cells import MINUS
from rela_cli.report.results.comparison import results_of
from tests.report.made_runs import Make, Record, cell, make, records, shown

__all__ = ["make"]  # a fixture
T_975_2 = 4.302652729749462  # 97.5 % point of Student with two degrees of freedom, from printed tables


def cost(train: float, extract: float = 0.0) -> dict[str, float]:
    """One stage account; the probe's share must never count."""
    return {"extract": extract, "transport": 0.0, "train": train, "probe": 1e6}


@pytest.fixture
def curves(make: Make) -> Make:
    """Plain at 0.25, 0.5 and 1 costs 100, 200 and 400 and reaches 40, 50 and 60 %; a seed adds its number in points."""
    for seed in (0, 1, 2):
        for budget, train, top1 in ((0.25, 100, 0.4), (0.5, 200, 0.5), (1.0, 400, 0.6)):
            make(top1 + seed / 100, "none", budget, seed, flops=cost(train), samples_seen=train, train_samples=400)
    return make


def rela(curves: Make, budget: float, values: list[float], train: float, **fields: Any) -> None:
    for seed, value in enumerate(values):
        fields = {"flops": cost(train, 40), "samples_seen": train, "train_samples": 400, **fields}
        curves(value, "patches", budget, seed, **fields)


def patches(found: list[Record], budget: float) -> Record:
    return cell(found, kind="prior", prior="patches", budget=budget)


def test_the_same_seeds_are_paired(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rela(curves, 0.5, [0.55, 0.58, 0.58], 160)
    curves(0.99, "patches", 0.5, 7)  # no plain run has this seed
    one = patches(records(tmp_path, capsys, "--differences"), 0.5)
    expected = [0.05, 0.07, 0.06]
    half = T_975_2 * statistics.stdev(expected) / math.sqrt(3)
    assert one["minus_plain_n"] == 3
    assert one["minus_plain"] == pytest.approx(0.06)
    assert one["minus_plain_low"] == pytest.approx(0.06 - half)
    assert one["minus_plain_high"] == pytest.approx(0.06 + half)
    assert one["minus_star"] == pytest.approx(-0.04)


def test_one_seed_has_no_interval(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(0.5, seed=3)
    make(0.6, "patches", seed=3)
    one = patches(records(tmp_path, capsys, "--differences"), 0.5)
    assert (one["minus_plain"], one["minus_plain_low"], one["minus_plain_n"]) == (pytest.approx(0.1), None, 1)
    assert "+10.0 |" in shown(tmp_path, capsys, "--differences", "--format=md")


def test_equal_cost_counts_the_prior_and_not_the_probe(
    curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rela(curves, 0.5, [0.60, 0.61, 0.62], 160)  # 160 + 40 of the prior: what plain costs at 0.5
    one = patches(records(tmp_path, capsys, "--equal-cost=flops"), 0.5)
    assert one["equal_cost"] == pytest.approx(0.10)
    assert one["equal_cost_n"] == 3
    assert one["cost_share_of_star"] == pytest.approx(0.5)


def test_between_budgets_plain_is_linear_in_log_cost(
    curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rela(curves, 0.5, [0.60, 0.61, 0.62], 200 * math.sqrt(2) - 40)  # half way, in logarithms, from 200 to 400
    one = patches(records(tmp_path, capsys, "--equal-cost=flops"), 0.5)
    assert one["equal_cost"] == pytest.approx(0.60 - 0.55)


def test_in_samples_the_prior_looks_once_at_every_image(
    curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rela(curves, 0.1, [0.60], 0, samples_seen=1, train_samples=199, flops={})
    one = patches(records(tmp_path, capsys, "--equal-cost=samples"), 0.1)
    assert one["equal_cost"] == pytest.approx(0.10)  # 1 + 199 images: what plain sees at 0.5


@pytest.mark.parametrize(
    ("train", "outside", "words"),
    [(361.0, "above", "dearer than any plain run"), (59.0, "below", "cheaper than any plain run")],
)
def test_outside_of_plains_range_nothing_is_made_up(
    curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], train: float, outside: str, words: str
) -> None:
    rela(curves, 0.5, [0.60, 0.61, 0.62], train)
    one = patches(records(tmp_path, capsys, "--equal-cost=flops"), 0.5)
    assert (one["equal_cost"], one["equal_cost_n"], one["equal_cost_outside"]) == (None, 0, outside)
    assert words in shown(tmp_path, capsys, "--equal-cost=flops", "--format=md")


def test_a_cost_that_is_not_known_is_not_zero(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rela(curves, 0.5, [0.60], 160, flops={})
    one = patches(records(tmp_path, capsys, "--equal-cost=flops"), 0.5)
    assert (one["equal_cost"], one["cost_share_of_star"], one["reach"]) == (None, None, None)


@pytest.mark.parametrize(
    ("first", "second", "how", "share"),
    [
        (0.5, 0.7, "at", math.sqrt(80 * 320) / 400),  # half way between 80 and 320
        (0.65, 0.7, "at most", 80 / 400),
        (0.5, 0.55, "not reached", None),
        (0.5, 0.6, "at", 320 / 400),  # as good is reached
    ],
)
def test_cost_to_reach_plain_star(
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: float,
    second: float,
    how: str,
    share: float | None,
) -> None:
    make(0.6, "none", 1.0, flops=cost(400))
    make(first, "patches", 0.2, flops=cost(40, 40))
    make(second, "patches", 0.5, flops=cost(280, 40))
    found = records(tmp_path, capsys, "--equal-cost=flops")
    assert {r["reach"] for r in found if r["kind"] == "prior"} == {how}
    assert patches(found, 0.5)["reach_share"] == (share and pytest.approx(share))
    text = shown(tmp_path, capsys, "--equal-cost=flops", "--format=md")
    assert {"at": " % (1)", "at most": "≤ 20 % (1)", "not reached": "not reached (1)"}[how] in text


def test_seeds_are_averaged_by_budget_whatever_each_cost(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that was busy made the smaller budget of seed 1 the dearer one; means are of budgets all the same."""
    for seed in (0, 1):
        make(0.6, "none", 1.0, seed, flops=cost(400))
    for seed, (small, large) in enumerate(((100, 200), (300, 200))):
        make(0.5, "patches", 0.2, seed, flops=cost(small))
        make(0.7, "patches", 0.5, seed, flops=cost(large))
    make(0.7, "patches", 0.5, 2, flops=cost(1))  # lacks a budget, and plain*
    found = [r for r in records(tmp_path, capsys, "--equal-cost=flops") if r["kind"] == "prior"]
    assert [(one["reach"], one["reach_share"]) for one in found] == [("at", pytest.approx(200 / 400))] * 2


def test_intervals_without_0_have_a_word_in_both_directions(
    curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rela(curves, 0.5, [0.60, 0.61, 0.621], 160)
    rela(curves, 0.25, [0.30, 0.31, 0.321], 160)
    text = shown(tmp_path, capsys, "--differences", "--format=md")
    text = text.replace(MINUS, "-")
    first, second = (line for line in text.splitlines() if "[" in line and line.startswith("| 0."))
    assert "**-10.0** [-10.1, -9.8] worse" in first and "**-30.0** [-30.1, -29.8] worse" in first
    assert "**+10.0** [+9.9, +10.2] better | +0.0 [-0.1, +0.2]" in " ".join(second.split())
    plain = shown(tmp_path, capsys, "--differences")
    assert "better: the whole interval lies above 0" in plain and "worse: the whole interval lies below 0" in plain


def test_two_columns_are_paired_by_seed(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rela(curves, 0.5, [0.60, 0.64, 0.65], 160, prior_alone=0.9)
    for seed, value in enumerate((0.50, 0.52, 0.54)):
        curves(value, "random", 0.5, seed, prior_alone=0.3)
    found = records(tmp_path, capsys, "--between", "patches", "random", "--between", "patches", "patches prior alone")
    one, values = patches(found, 0.5), (0.10, 0.12, 0.11)
    half = T_975_2 * statistics.stdev(values) / math.sqrt(3)
    assert one["patches_minus_random"] == pytest.approx(0.11)
    assert one["patches_minus_random_low"] == pytest.approx(0.11 - half)
    assert one["patches_minus_random_n"] == 3
    assert one["patches_minus_patches prior alone"] == pytest.approx(0.63 - 0.9)  # goes with every seed
    assert one["patches_minus_patches prior alone_n"] == 3
    assert cell(found, kind="prior", prior="random", budget=0.5)["patches_minus_random"] is None
    text = shown(tmp_path, capsys, "--between", "patches", "random")
    assert "patches minus random, points by lbfgs (online)" in text and "+11.0 [+8.5, +13.5] better" in text


def test_two_priors_alone_are_one_measurement_each(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1, 2):
        make(0.5, "patches", seed=seed, prior_alone=0.9)
        make(0.5, "random", seed=seed, prior_alone=0.7)
    between = ("--between", "patches prior alone", "random prior alone")
    one = cell(records(tmp_path, capsys, *between), kind="prior_alone", prior="patches")
    name = "patches prior alone_minus_random prior alone"
    assert (one[name], one[f"{name}_low"], one[f"{name}_n"]) == (pytest.approx(0.2), None, 1)


def test_a_column_that_is_not_there_or_not_one(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(0.5)
    for size in (32, 64):
        make(0.5, "patches", changes={"transport.max_dim": size})
    with pytest.raises(ConfigError, match="did you mean plain"):
        shown(tmp_path, capsys, "--between", "plian", "patches")
    with pytest.raises(ConfigError, match=r"several, patches transport.max_dim=32; patches transport.max_dim=64"):
        shown(tmp_path, capsys, "--between", "plain", "patches")


def test_n_is_said_once_or_in_every_cell(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(0.5, seed=0)
    assert "n: 1 seed in every cell" in shown(tmp_path, capsys, "--format=md")
    make(0.6, "patches", seed=0)
    make(0.6, "patches", seed=1)
    text = shown(tmp_path, capsys, "--format=md")
    assert "**60.0** ±0.0 " in text and "(2)" not in text and "1 seed in every cell" not in text
    assert "standard deviation over 2 seeds; without ±: 1 seed" in text
    make(0.52, seed=1)
    text = shown(tmp_path, capsys, "--format=md")
    assert "(1)" not in text and "(2)" not in text and "±: standard deviation over 2 seeds" in text


def test_latex_is_whole(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rela(curves, 0.5, [0.30, 0.31, 0.33], 160)
    text = shown(tmp_path, capsys, "--equal-cost=flops", "--format=latex")
    assert text.isascii()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.count("$") % 2 == 0 and text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    for tabular in text.split(r"\begin{tabular}{")[1:]:
        columns = tabular.index("}")
        rows = [line for line in tabular.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in rows} == {columns - 1}


KERNEL = {
    "centering",
    "caption",
    "label",
    "par",
    "smallskip",
    "footnotesize",
    "textbf",
    "underline",
    "\\",
    "_",
    "%",
    "#",
    "&",
}
KERNEL |= {"$", "{", "}", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textdagger"}
BOOKTABS, MATH = {"toprule", "midrule", "bottomrule"}, {"pm", "leq", "cdot"}


def macros(node: Any, in_math: bool = False) -> Iterator[tuple[str, bool]]:
    """Every macro and special character below a node of the parser's tree, and whether it stands in mathematics."""
    in_math = in_math or type(node).__name__ == "LatexMathNode"
    if type(node).__name__ == "LatexMacroNode":
        yield node.macroname, in_math
    elif type(node).__name__ == "LatexCharsNode":
        yield from ((f"bare {letter}", in_math) for letter in node.chars if letter in "_^#~")
    arguments = node.nodeargd.argnlist if getattr(node, "nodeargd", None) else None
    for inner in [*(arguments or []), *(getattr(node, "nodelist", None) or [])]:
        yield from macros(inner, in_math) if inner is not None else ()


def test_latex_parses_whatever_a_label_holds(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strictly: environments, braces and dollars close in their order; no macro but the kernel's and booktabs'."""
    walker = pytest.importorskip("pylatexenc.latexwalker", reason="pip install pylatexenc")
    rela(curves, 0.5, [0.30, 0.31, 0.33], 160)
    curves(0.5, changes={"dataset.limit": r"50%_#&{a}~\b^$<>\end{table}"})
    text = shown(tmp_path, capsys, "--equal-cost=flops", "--cost", "--format=latex")
    nodes, _, length = walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    assert length == len(text)
    environments = [node for node in nodes if type(node).__name__ == "LatexEnvironmentNode"]
    assert len(environments) >= 4 and {node.environmentname for node in environments} == {"table"}
    used = {found for node in nodes for found in macros(node)}
    assert {name for name, in_math in used if in_math} <= MATH
    assert {name for name, in_math in used if not in_math} <= KERNEL | BOOKTABS
    assert {name for name, _ in used} >= BOOKTABS and "textbackslash" in {name for name, _ in used}


def test_latex_tables_can_be_referred_to(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rela(curves, 0.5, [0.30, 0.31, 0.33], 160)
    text = shown(tmp_path, capsys, "--equal-cost=flops", "--cost", "--format=latex")
    labels = re.findall(r"\\caption\{[^\n]+\}\n\\label\{tab:([a-z0-9-]+)\}", text)
    assert len(labels) == len(set(labels)) == text.count(r"\begin{table}") == 4
    assert labels[0] == "digits-resnet18-simclr-top-1-by-lbfgs-online"


def test_unknown_axis(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="did you mean seconds"):
        table.main(["--equal-cost=second"])


def test_no_prior_no_differences(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(0.5)
    assert "minus plain" not in shown(tmp_path, capsys, "--equal-cost=flops", "--format=md")


def test_a_failed_run_is_no_pair(curves: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rela(curves, 0.5, [0.60], 160)
    curves(0.01, "patches", 0.5, 1, status="failed")
    assert patches(records(tmp_path, capsys, "--differences"), 0.5)["minus_plain_n"] == 1


def test_cost_of_reads_the_account() -> None:
    (run,) = results_of([json.loads(json.dumps({**RESULT, "seconds": cost(3.0, 2.0)}))])
    assert paired.cost_on_axis(run, "seconds") == 5.0


RESULT: Record = {
    **dict.fromkeys(("dataset", "learner", "method"), "x"),
    "prior": "none",
    "budget": 1,
    "seed": 0,
    "status": "finished",
    "settings": {"dataset": {"name": "x"}},
}


@pytest.mark.parametrize(
    ("cost_of_it", "expected"),
    [(99.0, "below"), (100.0, 0.4), (20_000**0.5, 0.45), (200.0, 0.5), (400.0, 0.6), (401.0, "above")],
)
def test_accuracy_at_a_cost_is_linear_in_its_logarithm(cost_of_it: float, expected: float | str) -> None:
    """At the first and the last point it is theirs; beyond them there is no number."""
    found = paired.accuracy_at_cost([(100.0, 0.4), (200.0, 0.5), (400.0, 0.6)], cost_of_it)
    assert found == (expected if isinstance(expected, str) else pytest.approx(expected))
