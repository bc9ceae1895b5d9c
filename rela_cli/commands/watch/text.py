"""The runs of an outputs folder as text for a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rela_cli.store.files import Facts
from rela_cli.terminal import as_duration, as_percent, printable

COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "damaged": "red", "killed": "yellow"}
AROUND = 6  # lines of the screen that are no runs
GAP = 2  # characters between columns
LEAST_OF_A_NAME = 12  # characters
SPEED = "images/s"  # the column that is left out where names have no room


def drawn(state: Facts, width: int, rows: int | None) -> Group:
    """The runs that fit on a screen of `width` characters and `rows` lines, and a count of the others."""
    runs = state["runs"]
    shown = runs if rows is None else runs[: max(1, rows - AROUND)]
    failures = [Text(f"{printable(run['name'])}: {printable(run['reason'])}") for run in shown if run["reason"]]
    hidden = [Text(f"{len(runs) - len(shown)} more runs")] if len(shown) < len(runs) else []
    names, shared = told_apart([printable(run["name"]) for run in shown])
    said = [Text(f"all of them: {', '.join(shared)}")] if shared else []
    return Group(Text(state_counts(runs)), *said, table_of(names, shown, state["now"], width), *hidden, *failures)


def table_of(names: list[str], runs: list[Facts], now: float, width: int) -> Table:
    """A row a run. Where names have no room the speed is left out; if that is not enough, their middle too."""
    columns = columns_of(runs, now)
    room = width - sum(GAP + max(len(head), *map(len, cells)) for head, cells in columns.items()) if runs else width
    if room < max(map(len, names), default=0):
        room += GAP + max(len(SPEED), *map(len, columns.pop(SPEED)))
    table = Table(box=None, pad_edge=False)
    for head in ("run", *columns):
        table.add_column(head, justify="left" if head in ("run", "state") else "right", no_wrap=True)
    for name, *cells in zip(names, *columns.values(), strict=True):
        table.add_row(Text(shortened(str(name), max(LEAST_OF_A_NAME, room))), *cells)
    return table


def told_apart(names: list[str]) -> tuple[list[str], list[str]]:
    """Names of runs without the words that all of them have, and these words; they are joined by dashes."""
    split = [name.split("-") for name in names]
    shared = [word for word in split[0] if all(word in words for words in split)] if len(split) > 1 else []
    return [
        "-".join(word for word in words if word not in shared) or name for name, words in zip(names, split, strict=True)
    ], shared


def state_counts(runs: list[Facts]) -> str:
    """'2 running, 14 finished'."""
    states = [run["status"] for run in runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no runs yet"


def columns_of(runs: list[Facts], now: float) -> dict[str, list[Text]]:
    """What stands beside the names of the runs, by the head of its column."""
    protocols = {protocol_of(run["top1"]) for run in runs} - {""}
    is_one = len(protocols) == 1  # then the head says which
    texts = {
        "state": [run["status"] for run in runs],
        "epoch": [f"{run['epoch']}/{run['epochs']}" if run["epochs"] else "" for run in runs],
        "loss": [number_or_blank(run.get("loss"), 3) for run in runs],
        "kNN": [as_percent(run.get("knn")) for run in runs],
        SPEED: [number_or_blank(run.get("images_per_second"), 0) for run in runs],
        "left": [left(run, now) for run in runs],
        next(iter(protocols)) if is_one else "top-1": [best(run["top1"], is_named=not is_one) for run in runs],
    }
    found = {head: [Text(text) for text in column] for head, column in texts.items()}
    for cell in found["state"]:
        cell.stylize(COLOURS.get(cell.plain, ""))
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


def protocol_of(top1: dict[str, float]) -> str:
    """The protocol whose number is shown: lbfgs, else the first; empty without any."""
    return "lbfgs" if "lbfgs" in top1 else next(iter(top1), "")


def best(top1: dict[str, float], is_named: bool) -> str:
    """The number that is shown of a run, with its protocol where it `is_named`; empty where there is none."""
    protocol = protocol_of(top1)
    return f"{100 * top1[protocol]:.1f}{f' {protocol}' if is_named else ''}" if protocol else ""
