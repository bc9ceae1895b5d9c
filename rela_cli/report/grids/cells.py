"""Tables before they are written: cells, the marks that make a cell stand out, and the grid of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

MISSING = "—"

MINUS = "\N{MINUS SIGN}"  # as wide as a plus, unlike a hyphen

BEST, ABOVE, BETTER, WORSE, EQUAL = "best", "above", "better", "worse", "equivalent"  # how a cell stands out

MARK_WORDS = {BEST: "best", ABOVE: "↑"} | {mark: mark for mark in (BETTER, WORSE, EQUAL)}  # without bold or underline

SPOKEN = (BETTER, WORSE, EQUAL)  # marks that are words in every format

MARK_STYLES = {
    BEST: "bold green",
    ABOVE: "underline",
    BETTER: "bold green",
    WORSE: "bold red",
    EQUAL: "bold cyan",
}  # on a terminal

SEEN = "†"  # a cell whose prior has seen the labels that it is judged by

UNKNOWN = "?"  # a cell of whose prior nobody says which labels it has seen


def or_missing(value: float | None, form: Callable[[float], str]) -> str:
    """A number in words; a dash where there is none."""
    return form(value) if value else MISSING


@dataclass(frozen=True)
class Cell:
    """A value, what belongs behind or under it, and how it stands out: some of BEST, ABOVE, BETTER, WORSE, EQUAL."""

    text: str = MISSING
    detail: str = ""
    marks: tuple[str, ...] = ()

    @property
    def spoken(self) -> str:
        """The detail, with the marks that are words everywhere."""
        return " ".join([self.detail, *(MARK_WORDS[mark] for mark in self.marks if mark in SPOKEN)]).strip()


@dataclass(frozen=True)
class Grid:
    """A titled table: row labels under `label_heads`, then one `Cell` a row under each of `heads`.

    A head may have several lines. `legend` is pairs of a mark, or of what a cell may hold, and its meaning; those
    that do not occur are not shown. `parts` are the same in several grids, for a screen on which the whole has no room;
    with `rest` only the first of them is shown there, and `rest` says how to see the others.
    """

    title: str
    label_heads: tuple[str, ...]
    heads: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[tuple[Cell, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()
    parts: tuple[Grid, ...] = ()
    rest: str = ""

    def occurs(self, mark: str) -> bool:
        """Whether a cell has the mark, or is MISSING; a legend's other words are there because they are needed."""
        every = [cell for row in self.cells for cell in row]
        if mark == MISSING:
            return any(cell.text == MISSING for cell in every)
        return mark not in MARK_STYLES or any(mark in cell.marks for cell in every)

    @property
    def needed(self) -> list[tuple[str, str]]:
        """The lines of the legend for what occurs."""
        return [(mark, meaning) for mark, meaning in self.legend if self.occurs(mark)]


def without_empty(grid: Grid) -> tuple[Grid, list[str]]:
    """The grid without rows and columns that hold nothing at all, and the names of those columns."""
    rows = [i for i, row in enumerate(grid.cells) if any(cell.text != MISSING for cell in row)]
    columns = [j for j in range(len(grid.heads)) if any(grid.cells[i][j].text != MISSING for i in rows)]
    gone = [" ".join(head.split()) for j, head in enumerate(grid.heads) if j not in columns]
    parts = tuple(part for whole in grid.parts if (part := without_empty(whole)[0]).cells)
    return replace(
        grid,
        heads=tuple(grid.heads[j] for j in columns),
        labels=tuple(grid.labels[i] for i in rows),
        cells=tuple(tuple(grid.cells[i][j] for j in columns) for i in rows),
        parts=parts,
    ), gone


def transposed(grid: Grid) -> Grid:
    """Its rows as columns: what was a row's label stands in lines over its column, a word a line."""
    split = [[label.split() or [""] for label in labels] for labels in grid.labels]
    tall = [max((len(labels[i]) for labels in split), default=1) for i in range(len(grid.label_heads))]
    stack = lambda every: "\n".join(  # noqa: E731 - lines of one kind stand at one height
        line for words, height in zip(every, tall, strict=True) for line in [*words, *[""] * (height - len(words))]
    )
    return replace(
        grid,
        label_heads=(stack([[head] for head in grid.label_heads]),),
        heads=tuple(map(stack, split)),
        labels=tuple((" ".join(head.split()),) for head in grid.heads),
        cells=tuple(zip(*grid.cells, strict=True)),
    )
