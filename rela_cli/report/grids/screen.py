"""Grids on a terminal of any width and any encoding."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rela_cli.report.grids.cells import (
    ABOVE,
    BEST,
    MARK_STYLES,
    MARK_WORDS,
    MINUS,
    MISSING,
    SEEN,
    SPOKEN,
    Cell,
    Grid,
    transposed,
    without_empty,
)
from rela_cli.terminal import printable

LONG_LABEL = 14  # a line of a label with more characters breaks behind its "=" when the screen is narrow

ASCII = str.maketrans({"±": "+/-", MISSING: "--", "·": "-", SEEN: "#", MINUS: "-", "≤": "<=", "↑": "up"})


def speakable(text: str, encoding: str | None) -> str:
    """`text` in characters that `encoding` has, so that ± on an ASCII screen is +/- and not a crash."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "replace").decode(encoding)


def write(text: str) -> None:
    """Text to stdout, whatever its encoding."""
    sys.stdout.write(speakable(printable(text, lines=True), sys.stdout.encoding))


# ----------------------------------------------------------------------------------------------------- rich


def print_rich(grids: Sequence[Grid], notes: Sequence[str], console: Console | None = None) -> None:
    """Print grids so that they stay readable at the console's width; what a mark means after the last that has it."""
    console = console or Console(highlight=False)
    shown: list[tuple[Grid, list[str]]] = []
    for whole in grids:
        grid, gone = without_empty(whole)
        if grid.cells:
            shown += [(one, []) for one in ([grid] if not grid.parts or _whole(grid, console) else grid.parts)]
            shown[-1][1].extend(gone)
    last = {line: number for number, (grid, _) in enumerate(shown) for line in grid.needed}
    for number, (grid, gone) in enumerate(shown):
        console.print(_text(grid.title, console, "bold"))
        for table in _fitting(grid, console):
            console.print(table)
        _print_legend([line for line in grid.needed if last[line] == number], gone, console)
    for note in notes:
        console.print(_text(printable(f"note: {note}"), console))


def _print_legend(legend: Sequence[tuple[str, str]], gone: Sequence[str], console: Console) -> None:
    """What the marks mean, and which columns had nothing in them."""
    names = {BEST: "bold", ABOVE: "underlined"} if _styled(console) else MARK_WORDS
    words = [f"{names.get(mark, MARK_WORDS.get(mark, mark))}: {meaning}" for mark, meaning in legend]
    words += [f"no result: {', '.join(gone)}"] * bool(gone)
    console.print(_text("; ".join(words) + "\n" * bool(words), console, "dim"))


def _styled(console: Console) -> bool:
    """Whether bold and underlined can be seen; not in a file, nor where TERM=dumb."""
    return console.color_system is not None


def _whole(grid: Grid, console: Console) -> Table | None:
    """One table with a line a row, the rows as columns if need be; None if it does not fit on the screen."""
    tables = (_table(one, range(len(one.heads)), console, tight=False) for one in (grid, transposed(grid)))
    return next((table for table in tables if _fits(table, console)), None)


def _fitting(grid: Grid, console: Console) -> list[Table]:
    """One table if it fits on the screen, else one with cells of several lines, else several below one another."""
    if table := _whole(grid, console):
        return [table]
    for one in (grid, transposed(grid)):
        table = _table(one, range(len(one.heads)), console, tight=True)
        if _fits(table, console):
            return [table]
    tables: list[Table] = []
    start = 0
    while start < len(grid.heads):
        stop = len(grid.heads)
        while stop > start + 1 and not _fits(_table(grid, range(start, stop), console, tight=True), console):
            stop -= 1
        tables.append(_table(grid, range(start, stop), console, tight=True))
        start = stop
    return tables


def _fits(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return console.measure(table, options=unlimited).maximum <= console.width


def _table(grid: Grid, columns: Sequence[int], console: Console, tight: bool) -> Table:
    """The chosen columns; `tight` breaks cells, labels and long heads into lines."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for head in grid.label_heads:
        table.add_column(_text(head, console), overflow="fold")
    for column in columns:
        head = _broken(grid.heads[column]) if tight else grid.heads[column]
        table.add_column(_text(head, console), justify="right", overflow="fold")
    shown = [_column([row[j] for row in grid.cells], grid.heads[j], console, tight) for j in columns]
    for labels, *cells in zip(said_once(grid.labels), *shown, strict=True):
        names = [_text(_broken(label) if tight else label, console) for label in labels]
        table.add_row(*names, *cells)
    return table


def said_once(every: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Labels without what stands in the row above already; the last one of a row is always there."""
    found: list[tuple[str, ...]] = []
    above: tuple[str, ...] = ()
    for labels in every:
        same = next((i for i, (one, other) in enumerate(zip(labels, above, strict=False)) if one != other), 0)
        kept = min(same, len(labels) - 1)
        found.append(("",) * kept + labels[kept:])
        above = labels
    return found


def _column(cells: Sequence[Cell], head: str, console: Console, tight: bool) -> list[Text]:
    """The cells of a column: numbers, details and marks below one another; `tight`: details below their numbers."""
    pieces = [[speakable(text, console.encoding) for text in _pieces(cell, console)] for cell in cells]
    widths = [max(map(len, column)) for column in zip(*pieces, strict=True)]
    behind_all = sum(width + 1 for width in widths[1:] if width)
    widths[0] = max(widths[0], max(map(len, head.split("\n"))) - behind_all)  # its end below the head's
    found = []
    for cell, (value, *behind) in zip(cells, pieces, strict=True):
        text = Text(justify="right" if tight else "left")
        text.append("" if tight else " " * (widths[0] - len(value)))
        text.append(value, " ".join(MARK_STYLES[mark] for mark in cell.marks))
        for word, width in zip(behind, widths[1:], strict=True):
            style = MARK_STYLES[cell.marks[0]] if word and word in map(MARK_WORDS.get, SPOKEN) else ""
            if tight:
                text.append(f"\n{word}" * bool(word), style)
            elif width:
                text.append(f" {word.ljust(width)}", style)
        found.append(text)
    return found


def _pieces(cell: Cell, console: Console) -> tuple[str, str, str]:
    """A value, its detail, and the marks that have to be words here."""
    words = [MARK_WORDS[mark] for mark in cell.marks if mark in SPOKEN or not _styled(console)]
    return cell.text, cell.detail, " ".join(words)


def _broken(label: str) -> str:
    return "\n".join(word.replace("=", "=\n", 1) if len(word) > LONG_LABEL else word for word in label.split())


def _text(text: str, console: Console, style: str = "") -> Text:
    """Text, never markup: a label such as [0.5,1] would be read as a tag."""
    return Text(speakable(printable(text, lines=True), console.encoding), style)
