"""Tables for a screen say once what most of their rows and columns have in common. Knows nothing about runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rela_cli.report.grids.cells import Cell, Grid

UNSAID = "unless said otherwise"  # how the legend begins that names what was left out

LEAST = 3  # labels of which more than half agree; of two, each says what it is


def brief(grid: Grid) -> Grid:
    """Without the `key=value` that most heads or most rows share; the legend says it. Names stay different ones."""
    heads, of_heads = without_usual(grid.heads)
    columns = [without_usual(column) for column in zip(*grid.labels, strict=True)]
    labels = tuple(zip(*(column for column, _ in columns), strict=True))
    said = list(dict.fromkeys(of_heads + [word for _, words in columns for word in words]))
    if len(set(labels)) < len(set(grid.labels)) or len(set(heads)) < len(set(grid.heads)):
        return grid
    legend = (*grid.legend, *[(UNSAID, " ".join(said))] * bool(said))
    parts = tuple(map(brief, grid.parts))
    return replace(grid, heads=heads, labels=labels or grid.labels, legend=legend, parts=parts)


def sectioned(grid: Grid) -> Grid:
    """Only the last label of a row beside its cells; what the others say stands once, on a line over its rows."""
    labels: list[tuple[str, ...]] = []
    cells: list[tuple[Cell, ...]] = []
    above: tuple[str, ...] = ()
    for (*outer, last), row in zip(grid.labels, grid.cells, strict=True):
        if tuple(outer) != above:
            above = tuple(outer)
            named = zip(grid.label_heads[:-1], outer, strict=True)
            words = [word if word[:1].isalpha() else f"{head} {word}" for head, word in named if word]
            labels.append((" · ".join(words),))
            cells.append((Cell(""),) * len(row))
        labels.append((f"  {last}",))
        cells.append(row)
    return replace(grid, label_heads=(f"  {grid.label_heads[-1]}",), labels=tuple(labels), cells=tuple(cells))


def without_usual(labels: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Labels without their usual words, and these words."""
    words = usual(labels)
    return tuple("\n".join(" ".join(left) for left in lines_left(label, words)) for label in labels), words


def lines_left(label: str, words: Iterable[str]) -> list[list[str]]:
    """The words of each line without the usual ones; no line of a label that had words gets empty."""
    lines = [[word for word in line.split(" ") if word not in words] for line in label.split("\n")]
    return [line for line in lines if line] or [[]]


def usual(labels: Sequence[str]) -> list[str]:
    """The words `key=value` that more than half of the labels with this key have; at least LEAST labels have it."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for label in labels:
        for word in label.split():
            key, equals, _ = word.partition("=")
            if equals:
                values[key][word] += 1
    tops = ((*found.most_common(1)[0], found.total(), len(found)) for found in values.values())
    return [word for word, count, total, kinds in tops if kinds > 1 and total >= LEAST and 2 * count > total]
