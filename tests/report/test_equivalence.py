"""Two one-sided tests: by scipy, by hand, and by the 90 % interval; and how a table says what comes of them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rela_cli.errors import ConfigError
from rela_cli.report.differences.equivalence import larger_p
from rela_cli.report.differences.paired import Difference, marks_of, paired
from tests.report.made_runs import Make, cell, make, records, shown

__all__ = ["make"]  # a fixture


def half_of(values: list[float]) -> float:
    found = paired(dict(enumerate(values)))
    assert found is not None and found.half is not None
    return found.half


def is_within(mean: float, half: float | None, n: int, margin: float) -> bool:
    return Difference(mean, half, tuple(range(n))).is_within(margin)


def p_of(values: list[float], margin: float) -> float:
    return larger_p(statistics.fmean(values), half_of(values), len(values), margin)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_it_is_scipys_larger_p(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    values = list(random.normal(random.normal(0, 0.02), 0.01, n))
    margin = abs(random.normal(0.02, 0.01))
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert p_of(values, margin) == pytest.approx(max(above, below), rel=1e-9, abs=1e-12)


def test_by_hand_with_two_degrees_of_freedom() -> None:
    """Student's distribution has a closed form there: 1/2 + t / (2 sqrt(2 + t^2))."""
    values = [0.001, 0.011, 0.021]  # mean 0.011, deviation 0.01
    t = (0.03 - 0.011) / (0.01 / math.sqrt(3))
    assert p_of(values, 0.03) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-9)


def test_it_holds_where_the_90_percent_interval_lies_within_the_margin() -> None:
    values = [0.002, 0.008, -0.001, 0.004, 0.007]
    mean, half = statistics.fmean(values), half_of(values)
    reach = mean + stats.t.ppf(0.95, 4) * statistics.stdev(values) / math.sqrt(5)
    assert is_within(mean, half, 5, reach * 1.001) and not is_within(mean, half, 5, reach * 0.999)
    assert is_within(-mean, half, 5, reach * 1.001) and not is_within(-mean, half, 5, reach * 0.999)


def test_one_seed_is_never_equivalent_and_no_spread_is_decided_by_the_mean() -> None:
    assert not is_within(0.0, None, 1, 0.5)
    assert is_within(0.01, 0.0, 3, 0.02) and not is_within(0.02, 0.0, 3, 0.02)


def test_a_small_difference_may_be_better_and_equivalent() -> None:
    found = paired({0: 0.0040, 1: 0.0041, 2: 0.0042})
    assert found is not None
    assert marks_of(found, 1.0) == ("better", "equivalent")
    assert marks_of(found) == ("better",)
    assert marks_of(found, 0.3) == ("better",)


def test_a_table_says_within_what(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, value in enumerate((0.601, 0.604, 0.599)):
        make(0.6, seed=seed)
        make(value, "patches", seed=seed)
    one = cell(records(tmp_path, capsys, "--within=1.5"), kind="prior", prior="patches")
    values = [0.001, 0.004, -0.001]
    assert one["minus_plain_within_p"] == pytest.approx(p_of(values, 0.015))
    assert one["minus_star_within_p"] is None
    text = shown(tmp_path, capsys, "--within=1.5", "--format=md")
    assert "equivalent" in text and "within 1.5 points, by two one-sided t tests at 5 % each" in text
    assert "equivalent" not in shown(tmp_path, capsys, "--within=0.1", "--format=md").split("points: ")[0]
    assert "within_p" not in str(records(tmp_path, capsys, "--differences"))
    between = ("--between", "patches", "plain")
    assert "equivalent" in shown(tmp_path, capsys, *between, "--within=1.5", "--format=md")


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "x"])
def test_a_margin_is_a_number_above_0(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--within=.* must be a number above 0"):
        shown(tmp_path, capsys, f"--within={text}")


def test_a_table_of_datasets_does_not_ignore_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--within does not go with --on"):
        shown(tmp_path, capsys, "--within=1", "--on=digits")
