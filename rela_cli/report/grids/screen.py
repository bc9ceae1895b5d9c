"""Grids on a terminal of any width and any encoding."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rela_cli.report.grids.brief import brief, sectioned
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

LABEL_WIDTHS = (44, 28, 20, 14)  # characters of a line of a label where the screen is narrow

ASCII = str.maketrans({"±": "+/-", MISSING: "--", "·": "-", SEEN: "#", MINUS: "-", "≤": "<=", "↑": "up"})


class Screen(Console):
    """A console whose reader may go, as in `rela table | head`: the command then ends as all others do."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


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
    console = console or Screen(highlight=False)
    shown = [found for grid in grids for found in _shown(grid, console)]
    last = {line: number for number, (grid, _) in enumerate(shown) for line in grid.needed}
    for number, (grid, more) in enumerate(shown):
        console.print(_rich_text(grid.title, console, "bold"))
        for table in _fitting(grid, console):
            console.print(table)
        _print_legend([line for line in grid.needed if last[line] == number], more, console)
    for note in notes:
        console.print(_rich_text(printable(f"note: {note}"), console))


def _shown(whole: Grid, console: Console) -> Iterator[tuple[Grid, list[str]]]:
    """A grid, or its parts where it has no room; with what is said below it: empty columns, parts that are left out."""
    grid, gone = without_empty(whole)
    if not grid.cells:
        return
    grid, more = brief(grid), [f"no result: {', '.join(gone)}"] * bool(gone)
    if not grid.parts or _first_fit((grid, transposed(grid)), console, None):
        yield grid, more
    elif grid.rest:
        yield grid.parts[0], [*more, grid.rest]
    else:
        *first, last = grid.parts
        yield from ((part, []) for part in first)
        yield last, more


def _print_legend(legend: Sequence[tuple[str, str]], more: Sequence[str], console: Console) -> None:
    """A line for the marks, a line for the words."""
    marks = [line for line in legend if line[0] in MARK_WORDS]
    words = [f"{word}: {meaning}" for word, meaning in legend if word not in MARK_WORDS]
    lines = [Text("; ").join(_mark(*line, console) for line in marks)]
    lines += [_rich_text(text, console, "dim") for text in ("; ".join(words), *more)]
    for line in filter(None, lines):
        console.print(line)
    console.print()


def _mark(mark: str, meaning: str, console: Console) -> Text:
    """A mark as it looks in the table, and its meaning."""
    names = MARK_WORDS | ({BEST: "bold", ABOVE: "underlined"} if _styled(console) else {})
    return _rich_text(names[mark], console, MARK_STYLES[mark]) + _rich_text(f": {meaning}", console, "dim")


def _styled(console: Console) -> bool:
    """Whether bold and underlined can be seen; not in a file, nor where TERM=dumb."""
    return console.color_system is not None


# --------------------------------------------------------------------------------------------------- the widths


def _first_fit(ways: Sequence[Grid], console: Console, *widths: int | None) -> Table | None:
    """The first way of showing a grid that fits on the screen, at the first width of its labels at which one does."""
    tables = (_table(one, range(len(one.heads)), console, width) for width in widths for one in ways)
    return next((table for table in tables if _fits(table, console)), None)


def _fitting(grid: Grid, console: Console) -> list[Table]:
    """One table if it fits on the screen, if need be with labels of several lines; else as few as possible."""
    ways = [grid, transposed(grid)] + [sectioned(grid)] * (len(grid.label_heads) > 1)
    if table := _first_fit(ways, console, None, *LABEL_WIDTHS):
        return [table]
    return min((_blocks(one, console) for one in (grid, transposed(grid))), key=len)


def _blocks(grid: Grid, console: Console) -> list[Table]:
    """As many columns as fit in each; a column that is too wide alone has cells of several lines."""
    tables: list[Table] = []
    start = 0
    while start < len(grid.heads):
        for stop in range(len(grid.heads), start, -1):
            columns = range(start, stop)
            table = _table(grid, columns, console, LABEL_WIDTHS[-1])
            if _fits(table, console):
                break
        else:
            table = _table(grid, columns, console, LABEL_WIDTHS[-1], tight=True)
        tables.append(table)
        start = stop
    return tables


def _fits(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return console.measure(table, options=unlimited).maximum <= console.width


def _table(grid: Grid, columns: Sequence[int], console: Console, width: int | None, tight: bool = False) -> Table:
    """The chosen columns; `width` breaks labels and heads into lines, `tight` breaks cells too."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for head in grid.label_heads:
        table.add_column(_rich_text(head, console), overflow="fold")
    for column in columns:
        table.add_column(_rich_text(_broken(grid.heads[column], width), console), justify="right", overflow="fold")
    shown = [_column([row[j] for row in grid.cells], grid.heads[j], console, tight) for j in columns]
    for labels, *cells in zip(said_once(grid.labels), *shown, strict=True):
        names = [_rich_text(_broken(label, width, "  "), console) for label in labels]
        table.add_row(*names, *cells)
    return table


# ---------------------------------------------------------------------------------------------------- the cells


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
        text.append(value, "dim" if cell.text == MISSING else " ".join(MARK_STYLES[mark] for mark in cell.marks))
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


def _broken(label: str, width: int | None, indent: str = "") -> str:
    """A label in lines of so many characters, all but the first set in; a longer word breaks behind its "="."""
    return label if width is None else "\n".join(_filled(line, width, indent) for line in label.split("\n"))


def _filled(line: str, width: int, indent: str) -> str:
    words = (word.replace("=", "= ", 1) if len(word) > width else word for word in line.split(" "))
    indent = indent + "  " * line.startswith(" ")
    return textwrap.fill(
        " ".join(words), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _rich_text(text: str, console: Console, style: str = "") -> Text:
    """Text, never markup: a label such as [0.5,1] would be read as a tag."""
    return Text(speakable(printable(text, lines=True), console.encoding), style)
