"""`rela bench`: who is compared with whom, and how. Speeds are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from rela_cli import cli
from rela_cli.commands.bench import contest, knn, memory, registry, show, transport
from rela_cli.commands.bench.contest import Bench, Comparison, Results
from rela_cli.commands.bench.memory import STATUS, peak_of
from rela_cli.commands.bench.timing import Contestant, Spread, Timing, Timings, clock, race, ratios, rotated
from tests.conftest import NO_TORCH, ROOT, Rela

ZERO = Timing(0.0, 0.0)


def record(*walls: float) -> Timings:
    return Timings(ZERO, [Timing(cpu=10 * wall, wall=wall) for wall in walls])


def named(calls: list[str], name: str, **options: object) -> Contestant:
    return Contestant(name, lambda: calls.append(name), **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- turns and ratios


def test_a_ratio_is_taken_in_each_round() -> None:
    """Medians of both sides would give 2 here."""
    found = ratios(record(2, 4, 9), record(1, 4, 3), "wall")
    assert found == Spread(median=2, min=1, max=3)
    assert ratios(record(8, 2, 6), record(1, 2, 6), "wall").median == 1


def test_either_clock() -> None:
    mixed = Timings(ZERO, [Timing(cpu=6, wall=1)])
    assert ratios(mixed, Timings(ZERO, [Timing(cpu=2, wall=4)]), "cpu").median == 3
    assert ratios(mixed, Timings(ZERO, [Timing(cpu=2, wall=4)]), "wall").median == 0.25


def test_everybody_warms_up_and_then_takes_turns() -> None:
    calls: list[str] = []
    race([named(calls, name) for name in "abc"], 3, pytest.fail)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


def test_turned() -> None:
    assert [rotated("abc", number) for number in (0, 1, 5)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_a_warm_up_of_its_own() -> None:
    calls: list[str] = []
    records = race([named(calls, "a", warm_up=lambda: calls.append("w"))], 1, pytest.fail)
    assert calls == ["w", "a"]
    assert len(records["a"].rounds) == 1


def test_time_on_a_share_of_the_work_counts_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rela_cli.commands.bench.timing.clock", lambda work: (Timing(cpu=2.0, wall=3.0), work()))
    records = race([Contestant("a", lambda: 7, share=0.25)], 2, pytest.fail)
    assert records["a"].rounds == [Timing(8.0, 12.0)] * 2
    assert (records["a"].warm_up, records["a"].result) == (Timing(2.0, 3.0), 7)


def test_the_clock_counts_children() -> None:
    import subprocess
    import sys

    took, _ = clock(lambda: subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True))
    idle, _ = clock(lambda: None)
    assert took.cpu > 0.01 > idle.cpu


def test_a_broken_peer_is_out_and_ours_is_not_excused() -> None:
    calls: list[str] = []

    def broken() -> None:
        raise RuntimeError("no such kernel")

    out: list[str] = []
    records = race(
        [named(calls, "a"), Contestant("b", broken)], 1, lambda who, error: out.append(f"{who.name}: {error}")
    )
    assert (set(records), out) == ({"a"}, ["b: no such kernel"])
    with pytest.raises(RuntimeError):
        race([Contestant("a", broken, is_ours=True)], 1, lambda who, error: None)


# --------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("bound", "unit", "target", "ratio", "value", "reached"),
    [
        ("least", "x", 3.0, 3.0, 3.0, True),
        ("least", "x", 3.1, 3.0, 3.0, False),
        ("most", "x", 0.4, 1 / 3, 1 / 3, True),
        ("most", "x", 0.3, 1 / 3, 1 / 3, False),
        ("most", "s", 2.0, 1 / 3, 2.0, True),
        ("most", "s", 1.9, 1 / 3, 2.0, False),
        ("least", "x", None, 3.0, 3.0, None),
    ],
)
def test_judged(bound: str, unit: str, target: float | None, ratio: float, value: float, reached: bool | None) -> None:
    """Ours takes 2 seconds, the peer 6."""
    pair = Comparison("ours", "peer", "work", target, "wall", bound, unit)
    score = contest.compared_row("knn", pair, {"ours": record(2), "peer": record(6)}, "all right")
    assert score.ratio == Spread(*[pytest.approx(ratio)] * 3)
    assert (score.value.median, score.reached) == (pytest.approx(value), reached)
    assert score.seconds["peer"] == {"cpu": 60, "wall": 6, "warm_up_wall": 0}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, rounds=1, tiny=True)


def scores_of(bench: Bench, calls: list[str], *peers: str) -> list[contest.Score]:
    contestants = [named(calls, "ours", is_ours=True), *(named(calls, peer) for peer in peers)]
    said: Callable[[Results, str], str] = lambda results, peer: f"against {peer}"  # noqa: E731
    return list(bench.scores("augment", contestants, [Comparison("ours", peer, "work") for peer in peers], said))


def test_a_peer_that_is_not_installed_is_named_and_skipped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PEER_PACKAGES, "kornia", ("no_such_package",))
    calls: list[str] = []
    found = scores_of(bench, calls, "lightly", "kornia")
    assert [(score.peer, score.accuracy) for score in found] == [("lightly", "against lightly")]
    assert "kornia" not in calls
    assert bench.skipped == [
        {"name": "augment", "peer": "kornia", "why": "no_such_package is not installed: pip install 'rela-cli[bench]'"}
    ]


def test_only_the_peers_asked_for(bench: Bench) -> None:
    bench.peers, calls = ("lightly",), list[str]()
    assert [score.peer for score in scores_of(bench, calls, "torchvision-v1", "lightly")] == ["lightly"]
    assert (set(calls), bench.skipped) == ({"ours", "lightly"}, [])


def test_a_peer_that_breaks_is_named(bench: Bench) -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel\nand more")

    contestants = [Contestant("ours", int, is_ours=True), Contestant("lightly", broken)]
    assert list(bench.scores("augment", contestants, [Comparison("ours", "lightly", "work")])) == []
    assert bench.skipped[0]["why"] == "RuntimeError: no such kernel"


# ------------------------------------------------------------------------------------------------------- what it says


def test_markdown() -> None:
    pair = Comparison("ours", "paper", "400,000 rows", 1.5, "wall")
    score = contest.compared_row("transport", pair, {"ours": record(2, 2), "paper": record(6, 5)}, "cosine 1")
    load = {when: {"time": "now", "average": [0.1, 0.2, 0.3]} for when in ("begin", "end")}
    head, _, row, _, note = show.markdown_table([score], {"torch": "2"}, load).splitlines()
    assert head.startswith("| row | work | against |")
    shown = "transport | 400,000 rows | paper | 2 | 5.5 | 2.75x [2.50x..3.00x] (wall) | ≥ 1.50x | yes | cosine 1"
    assert row == f"| {shown} |"
    assert "torch 2" in note and "0.1/0.2/0.3" in note


def test_list_names_every_row_and_needs_no_torch(rela: Rela) -> None:
    done = rela("bench", "--list", stub=NO_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in (*registry.BENCH_ROWS, *registry.PEERS))


def test_folders_that_are_not_there(rela: Rela) -> None:
    for words, named in ((("--data", "nowhere"), "nowhere"), (("--json", "no/x.json"), "no/x.json")):
        done = rela("bench", "startup", *words, stub=NO_TORCH)
        assert (done.returncode, named in done.stderr) == (3, True)


def test_every_row_has_its_file_and_every_file_its_row() -> None:
    files = {
        path.stem for path in Path(registry.__file__).parent.glob("*.py") if "def run(bench: Bench)" in path.read_text()
    }
    assert files - {"command"} == set(registry.BENCH_ROWS)


# ---------------------------------------------------------------------------------------------------------- real runs

ROW = {"name", "work", "peer", "ratio", "target", "reached", "accuracy"}


def peak_here(work: str, *arguments: str) -> float:
    """As `memory.peak_of`, without a process for it."""
    module, _, name = work.partition(":")
    function = getattr(import_module(f"rela_cli.commands.bench.{module}"), name)
    return max(1, memory.watched(lambda: function(*arguments))) / 1e9


@pytest.mark.slow
def test_json_of_small_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of every kind: a time, memory, seconds, growth, a loop with workers.

    Memory is looked at in this process here: `test_peak_memory_is_seen` has one of its own.
    """
    monkeypatch.chdir(tmp_path)
    for module in (knn, transport):
        monkeypatch.setattr(module, "peak_of", peak_here)
    rows = ("ingest", "extract", "transport", "step", "train", "probe", "knn", "startup")
    words = ("--size", "tiny", "--rounds", "1", "--json", "bench.json", "--markdown", "--device", "cpu")
    assert cli.main(["bench", *rows, *words]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert set(found) >= {"rows", "versions", "load"}
    assert {row["name"] for row in found["rows"]} == set(rows)
    assert all(set(row) >= ROW and set(row["ratio"]) == {"median", "min", "max"} for row in found["rows"])
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert len(found["load"]["begin"]["average"]) == 3
    said = {(row["name"], row["peer"]): row["accuracy"] for row in found["rows"]}
    assert said["ingest", "torchvision-v1"] == "the same pixels, all of them"
    assert "exits 2 and names the key" in said["startup", "python"]
    assert capsys.readouterr().out.count("| knn |") == sum(row["name"] == "knn" for row in found["rows"])


@pytest.mark.slow
def test_augment_is_exact_and_skips_the_gpu(bench: Bench) -> None:
    from rela_cli.commands.bench import augment

    bench.peers = ("torchvision-v1",)
    torch._dynamo.config.disable = True  # compiling takes half a minute and is not what is looked at
    try:
        found = list(augment.run(bench))
    finally:
        torch._dynamo.config.disable = False
    assert [(score.peer, score.target) for score in found] == [("torchvision-v1", 5.0), ("torchvision-v1", 12.0)]
    assert float(found[0].accuracy.split()[-1]) <= 1e-6
    if not torch.cuda.is_available():
        assert {note["peer"] for note in bench.skipped} == {"GPU rows"}


HOLD = """
import time
from rela_cli.commands.bench.memory import watched

def hold():
    held = bytearray(80_000_000)
    time.sleep(0.5)  # a hundred looks
    assert not held.count(1)

print(watched(hold))
"""


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc here")
def test_peak_memory_is_seen() -> None:
    """In a process of its own, as the bench looks: here, what earlier tests left may be collected meanwhile."""
    done = subprocess.run([sys.executable, "-c", HOLD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 70e6 < int(done.stdout) < 200e6
    assert peak_of("memory:anonymous") == pytest.approx(0, abs=0.05)
