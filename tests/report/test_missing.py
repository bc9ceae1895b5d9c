"""What a table says of runs that are not there, unfinished or broken."""

from __future__ import annotations

import pytest

from rela_cli.errors import RelaError
from rela_cli.report.results.collect import collect
from rela_cli.report.tables import tables
from tests.report.made_runs import Make, cell, make, markdown_rows, records, shown

__all__ = ["make"]  # a fixture


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
