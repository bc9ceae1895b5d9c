"""What runs cost, and labels that a prior has seen."""

from __future__ import annotations

from tests.report.made_runs import Make, cell, cost_fields, make, markdown_rows, records, shown

__all__ = ["make"]  # a fixture


def test_cost_counts_the_prior_pass_and_not_the_probe(make: Make, tmp_path, capsys):
    make(0.8, "patches", **cost_fields())
    make(0.8, "patches", seed=1, **cost_fields(2.0), switch_step=165)
    found = cell(records(tmp_path, capsys, "--cost"), kind="prior")
    assert (found["seconds_extract"], found["seconds_total"]) == (6.0, 102.0)  # though the cache made it 0 now
    assert found["flops_total"] == 1.236e12
    assert (found["steps"], found["switch_step"], found["peak_memory_bytes"]) == (330, 165, 512e6)
    assert "seconds_total" not in records(tmp_path, capsys)[0]


def test_the_cost_is_that_of_finished_runs(make: Make, tmp_path, capsys):
    """A run that failed on its way has spent less."""
    make(0.8, "patches", **cost_fields())
    make(0.8, "patches", seed=1, **cost_fields(2.0), status="failed")
    found = cell(records(tmp_path, capsys, "--cost"), kind="prior")
    assert (found["seconds_extract"], found["steps"]) == (4.0, 330)


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
