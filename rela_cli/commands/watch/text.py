"""The runs of an outputs folder as text for a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rela_cli.store.files import Facts
from rela_cli.terminal import as_duration, as_percent, printable

COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "damaged": "red", "killed": "yellow"}
AROUND = 6  # lines of the screen that are no runs
BESIDE_THE_NAME = 68  # characters of a row beside the name of a run


def drawn(state: Facts, width: int, rows: int | None) -> Group:
    """The runs that fit on a screen of `width` characters and `rows` lines, and a count of the others."""
    runs = state["runs"]
    shown = runs if rows is None else runs[: max(1, rows - AROUND)]
    table = Table(box=None, pad_edge=False)
    for head in ("run", "state", "epoch", "loss", "kNN", "images/s", "left", "top-1"):
        table.add_column(head, justify="left" if head in ("run", "state") else "right", no_wrap=True)
    for run in shown:
        table.add_row(
            Text(shortened(printable(run["name"]), max(12, width - BESIDE_THE_NAME))), *run_cells(run, state["now"])
        )
    failures = [Text(f"{printable(run['name'])}: {printable(run['reason'])}") for run in shown if run["reason"]]
    hidden = [Text(f"{len(runs) - len(shown)} more runs")] if len(shown) < len(runs) else []
    return Group(Text(state_counts(runs)), table, *hidden, *failures)


def state_counts(runs: list[Facts]) -> str:
    """'2 running, 14 finished'."""
    states = [run["status"] for run in runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no runs yet"


def run_cells(run: Facts, now: float) -> list[Text]:
    """What stands beside a run's name."""
    of = f"{run['epoch']}/{run['epochs']}" if run["epochs"] else ""
    texts = [
        run["status"],
        of,
        number_or_blank(run.get("loss"), 3),
        as_percent(run.get("knn")),
        number_or_blank(run.get("images_per_second"), 0),
        left(run, now),
        best(run["top1"]),
    ]
    found = [Text(text) for text in texts]
    found[0].stylize(COLOURS.get(run["status"], ""))
    return found


def shortened(name: str, width: int) -> str:
    """A name without its middle: the end tells runs apart."""
    head = (width - 3) // 2
    return name if len(name) <= width else f"{name[:head]}...{name[len(name) - (width - 3 - head) :]}"


def left(run: Facts, now: float) -> str:
    """The time that a running run still takes, if its epochs go on as they went; the stages before count as well."""
    if run["status"] != "running" or not run["epoch"] or not run["epochs"] or run["began"] is None:
        return ""
    return as_duration((now - run["began"]) * (run["epochs"] - run["epoch"]) / run["epoch"])


def number_or_blank(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point; empty without one."""
    return "" if value is None else f"{value:.{digits}f}"


def best(top1: dict[str, float]) -> str:
    """The lbfgs number, else the first."""
    key = "lbfgs" if "lbfgs" in top1 else next(iter(top1), None)
    return "" if key is None else f"{100 * top1[key]:.1f} {key}"
