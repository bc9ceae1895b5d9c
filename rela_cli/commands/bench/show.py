"""Rows as lines for people, as a markdown table, and as JSON."""

from __future__ import annotations

from typing import Any

from rela_cli.commands.bench.contest import BenchRow
from rela_cli.commands.bench.timing import Spread

HEAD = ("row", "work", "against", "ours, s", "peer, s", "ratio [min..max]", "target", "reached", "what came out")
MARKS = {True: "yes", False: "no", None: ""}


def row_line(score: BenchRow) -> str:
    """One row as it is printed while the others run."""
    _, work, peer, ours, theirs, ratio, target, mark, accuracy = row_cells(score)
    times = f"  {ours} s against {theirs} s" if ours and theirs else ""
    aim = f"  target {target}: {'reached' if score.reached else 'missed'}" if mark else ""
    return f"{score.name:<10} {work}, {peer}: {ratio}{times}{aim}" + (f"\n{'':<10} {accuracy}" if accuracy else "")


def markdown_table(scores: list[BenchRow], versions: dict[str, str], load: dict[str, Any]) -> str:
    """The table for docs/performance.md, and beneath it what it was measured with."""
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
    lines += ["| " + " | ".join(row_cells(score)) + " |" for score in scores]
    words = ", ".join(f"{name} {value}" for name, value in versions.items())
    average = {when: "/".join(f"{x:g}" for x in load[when]["average"]) for when in ("begin", "end")}
    note = (
        f"{load['begin']['time']}; load average {average['begin']} at the start, {average['end']} at the end; {words}."
    )
    return "\n".join([*lines, "", note])


def row_cells(score: BenchRow) -> tuple[str, ...]:
    """A row, by columns."""
    times = [f"{score.seconds[side][score.by]:.3g}" if score.seconds else "" for side in ("ours", "peer")]
    sign = "≥" if score.bound == "least" else "≤"
    goal = "" if score.target is None else f"{sign} {amount(score.target, score.unit)}"
    value = spread_text(score.value, score.unit)
    if score.unit != "x" and score.ratio:
        value += f"; {spread_text(score.ratio, 'x')}"
    clock = f" ({score.by})" if score.seconds else ""
    mark = MARKS[score.reached]
    return score.name, score.work, score.peer, *times, value + clock, goal, mark, score.accuracy


def spread_text(values: Spread, unit: str) -> str:
    """5.1x [4.8x..5.3x]"""
    return f"{amount(values.median, unit)} [{amount(values.min, unit)}..{amount(values.max, unit)}]"


def amount(value: float, unit: str) -> str:
    """A number with its unit; ratios with two digits below ten."""
    if unit == "x":
        return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def content(
    scores: list[BenchRow], skipped: list[dict[str, str]], versions: dict[str, str], load: Any
) -> dict[str, Any]:
    """What --json writes."""
    return {"rows": [score.facts() for score in scores], "skipped": skipped, "versions": versions, "load": load}
