"""`rela table --on`: one column a dataset and the mean, over seeds; by files written by hand."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from rela_cli.commands import table
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.store.files import write_json
from tests.report.made_runs import Make, make, markdown_rows, records, shown

__all__ = ["make"]
COUNTS = {"train_samples": 1437, "test_samples": 360}


def on(folder: Path, dataset: str, top1: float, untrained: float | None = None, **more: Any) -> None:
    """A file of numbers beside a run."""
    facts = {"dataset": dataset, "train_samples": 100, "test_samples": 50, "fed_size": 8, "judged": folder.name, **more}
    facts["probe"] = {"lbfgs": {"top1": top1, "network": more.get("network", "online")}}
    facts["untrained"] = {} if untrained is None else {"lbfgs": {"top1": untrained, "network": "untrained"}}
    write_json(folder / f"on_{dataset}-{more.get('fed_size', 8):08}.json", facts)


@pytest.fixture
def three_seeds(make: Make) -> dict[str, list[float]]:
    """Two datasets, three seeds of ReLA and of plain."""
    values = {"stl10": [0.50, 0.54, 0.58], "svhn": [0.70, 0.72, 0.77]}
    for seed in range(3):
        folder = make(0.9, prior="patches", seed=seed, untrained=0.3, **COUNTS)
        for dataset, numbers in values.items():
            on(folder, dataset, numbers[seed], 0.4 + 0.01 * seed)
        on(make(0.8, seed=seed, untrained=0.3, **COUNTS), "stl10", 0.45, 0.4 + 0.01 * seed)
    return values


def test_one_column_a_dataset_and_the_mean(
    three_seeds: dict[str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["backbone"]: row for row in markdown_rows(shown(tmp_path, capsys, "--on=svhn,stl10", "--format=md"))}
    assert list(rows["patches"]) == ["budget", "backbone", "svhn", "stl10", "mean"]
    means = [statistics.fmean(pair) for pair in zip(*three_seeds.values(), strict=True)]
    wanted = f"{100 * statistics.fmean(means):.1f} ±{100 * statistics.stdev(means):.1f}"
    assert rows["patches"]["mean"].replace("**", "") == wanted
    assert rows["patches"]["stl10"].replace("**", "") == "54.0 ±4.0"
    assert rows["plain"]["svhn"] == "—" and rows["plain"]["mean"] == "—", "no mean over less than all"
    assert rows["untrained"]["stl10"] == "41.0 ±1.0"


def test_the_runs_own_dataset_needs_no_file(
    three_seeds: dict[str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["backbone"]: row for row in markdown_rows(shown(tmp_path, capsys, "--on=digits", "--format=md"))}
    assert (rows["patches"]["digits"].replace("**", ""), rows["untrained"]["digits"]) == ("90.0 ±0.0", "30.0 ±0.0")


def test_differences_are_paired_with_the_untrained_learner(
    three_seeds: dict[str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = records(tmp_path, capsys, "--on=stl10")
    (one,) = [record for record in found if record["backbone"] == "patches"]
    gains = [value - 0.4 - 0.01 * seed for seed, value in enumerate(three_seeds["stl10"])]
    low, high = stats.t.interval(0.95, 2, statistics.fmean(gains), statistics.stdev(gains) / 3**0.5)
    assert one["minus_untrained"] == pytest.approx(statistics.fmean(gains))
    assert (one["minus_untrained_low"], one["minus_untrained_high"]) == pytest.approx((low, high))
    assert "minus untrained" in shown(tmp_path, capsys, "--on=stl10", "--differences")


def test_labels_that_were_seen_are_marked_and_never_best(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(make(0.9, prior="patches"), "stl10", 0.9, prior_saw_labels=True)
    on(make(0.9), "stl10", 0.5)
    on(make(0.9, prior="random"), "stl10", 0.4, labels_unknown=True)
    rows = {row["backbone"]: row for row in markdown_rows(shown(tmp_path, capsys, "--on=stl10", "--format=md"))}
    assert rows["patches"]["stl10"] == "90.0†"
    assert rows["plain"]["stl10"] == "**50.0**"
    assert rows["random"]["stl10"] == "40.0?"


def test_priors_alone_have_rows(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "outputs" / "priors" / "clip-12345678"
    folder.mkdir(parents=True)
    on(folder, "stl10", 0.95, judged="clip", network="prior alone")
    rows = markdown_rows(shown(tmp_path, capsys, "--on=stl10", "--format=md"))
    assert [row["stl10"] for row in rows] == ["95.0"], "without a single run"
    on(make(0.9), "stl10", 0.5)
    rows = markdown_rows(shown(tmp_path, capsys, "--on=all", "--format=md"))
    assert [(row["backbone"], row["stl10"]) for row in rows] == [("plain", "50.0"), ("clip alone", "95.0")]


def test_two_sizes_of_a_dataset_are_two_columns(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(0.9, **COUNTS)
    on(folder, "stl10", 0.5)
    on(folder, "stl10", 0.6, fed_size=16)
    on(folder, "svhn", 0.7)
    (row,) = markdown_rows(shown(tmp_path, capsys, "--on=stl10,svhn", "--format=md"))
    assert [row[head] for head in row if head not in ("budget", "backbone")] == ["50.0", "60.0", "70.0", "60.0"]
    assert any("16 px" in head for head in row) and "svhn" in row


def test_finetune_is_compared_with_from_scratch(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(0.9, **COUNTS)
    on(folder, "stl10", 0.5)
    facts = json.loads((folder / "on_stl10-00000008.json").read_text())
    facts["probe"] = {"finetune-1%": {"top1": 0.6, "network": "online"}}
    facts["untrained"] = {"finetune-1%": {"top1": 0.4, "network": "from scratch"}}
    facts.pop("own_sha256")
    write_json(folder / "on_stl10-00000008.json", facts)
    table = shown(tmp_path, capsys, "--on=stl10", "--format=md", "--differences", "--protocol=finetune-1%")
    assert {row["backbone"]: row["stl10"] for row in markdown_rows(table)} == {"from scratch": "40.0", "plain": "60.0"}
    assert "minus from scratch" in table and "+20.0" in table


def test_what_is_not_there_is_said(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(0.9)
    on(folder, "stl10", 0.5)
    with pytest.raises(ConfigError, match=r"--on=stl: nothing was judged on it, did you mean stl10\?"):
        shown(tmp_path, capsys, "--on=stl")
    with pytest.raises(RelaError, match="--protocol=knn"):
        shown(tmp_path, capsys, "--on=stl10", "--protocol=knn")
    (folder / "on_svhn-1.json").write_text('{"dataset": "svhn", "own_sha256": "0"}')
    assert "left out, it cannot be used" in " ".join(shown(tmp_path, capsys, "--on=stl10").split())
    with pytest.raises(MissingError):
        table.main([str(tmp_path / "nothing"), "--on=stl10"])


def test_mean_iou_has_its_own_name(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(0.9, prior="patches", **COUNTS)
    on(folder, "voc", 0.5)
    (path,) = folder.glob("on_voc-*.json")
    facts = json.loads(path.read_text())
    facts["probe"] = {"segment-linear": {"miou": 0.314, "pixel_accuracy": 0.8, "network": "online"}}
    facts["untrained"] = {"segment-linear": {"miou": 0.2, "network": "untrained"}}
    write_json(path, facts)
    out = shown(tmp_path, capsys, "--on=voc", "--format=md", "--differences")
    assert "mIoU % by segment-linear (online)" in out and "points of mIoU by segment-linear" in out
    assert "31.4" in out and "mean IoU of a linear head" in out and "top-1" not in out
