"""The forms of a table: terminal of any width, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys

import pytest

from rela_cli.commands import table
from rela_cli.report.grids import formats
from rela_cli.report.grids.screen import Screen, speakable
from tests.conftest import Rela
from tests.report.made_runs import Make, cell, make, records, shown

__all__ = ["make"]  # a fixture


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


def test_a_reader_that_has_gone_ends_a_table_as_it_ends_all_else():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Screen(file=Gone()).print("a table")
