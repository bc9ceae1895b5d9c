"""A grid of cells as a rich table, Markdown or LaTeX, and records as CSV or JSON. Knows nothing about runs."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rela_cli.store.notices import warn
from rela_cli.terminal import printable

MISSING = "—"
MINUS = "\N{MINUS SIGN}"  # as wide as a plus, unlike a hyphen
LONG_LABEL = 14  # a line of a label with more characters breaks behind its "=" when the screen is narrow
BEST, ABOVE, BETTER, WORSE, EQUAL = "best", "above", "better", "worse", "equivalent"  # how a cell stands out
MARK_WORDS = {BEST: "best", ABOVE: "↑"} | {mark: mark for mark in (BETTER, WORSE, EQUAL)}  # without bold or underline
SPOKEN = (BETTER, WORSE, EQUAL)  # marks that are words in every format
MARK_STYLES = {
    BEST: "bold",
    ABOVE: "underline",
    BETTER: "bold green",
    WORSE: "bold red",
    EQUAL: "bold cyan",
}  # on a terminal
FORMULA = ("=", "+", "-", "@", "\t")  # how text begins that spreadsheets calculate
SEEN = "†"  # a cell whose prior has seen the labels that it is judged by
UNKNOWN = "?"  # a cell of whose prior nobody says which labels it has seen
ASCII = str.maketrans({"±": "+/-", MISSING: "--", "·": "-", SEEN: "#", MINUS: "-", "≤": "<=", "↑": "up"})
MARKDOWN = str.maketrans({c: rf"\{c}" for c in "|*`<\\"} | {"\n": " "})
LATEX = str.maketrans(
    {c: rf"\{c}" for c in "_%#&${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
    | {
        ">": r"\textgreater{}",
        MINUS: "$-$",
        "≤": r"$\leq$",
        "±": r"$\pm$",
        MISSING: "---",
        "·": r"$\cdot$",
        SEEN: r"\textdagger{}",
        "↑": r"$\uparrow$",
        "\n": " ",
    }
)


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
    that do not occur are not shown. `parts` are the same in several grids, for a screen on which the whole has no room.
    """

    title: str
    label_heads: tuple[str, ...]
    heads: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[tuple[Cell, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()
    parts: tuple[Grid, ...] = ()

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


def si(value: float | None, unit: str = "", empty: str = MISSING) -> str:
    """Three digits with an SI prefix: 1.23 GFLOP."""
    if not value:
        return empty
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{three(value)} {prefixes[0]}{unit}".rstrip()


def three(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


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


# ------------------------------------------------------------------------------------------ Markdown, LaTeX


def markdown(grids: Sequence[Grid], notes: Sequence[str]) -> str:
    """The grids as GitHub tables, aligned in the source too."""
    marks = {BEST: "**bold**", ABOVE: "<u>underlined</u>"}
    parts: list[str] = []
    for grid in grids:
        parts += [f"**{_md(grid.title)}**", _md_table(grid)]
        if grid.needed:
            parts.append("; ".join(f"{marks.get(mark, _md(mark))}: {_md(meaning)}" for mark, meaning in grid.needed))
    return "\n\n".join([*parts, *(f"note: {_md(note)}" for note in notes)]) + "\n"


def _md_table(grid: Grid) -> str:
    rows = [[_md(head) for head in (*grid.label_heads, *grid.heads)]]
    for labels, cells in zip(grid.labels, grid.cells, strict=True):
        rows.append([*map(_md, labels), *(_marked(cell, _md, "**%s**", "<u>%s</u>") for cell in cells)])
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    left = len(grid.label_heads)
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    form = "| " + " | ".join(f"{{:{'<' if i < left else '>'}{width}}}" for i, width in enumerate(widths)) + " |"
    return "\n".join(form.format(*row) for row in (rows[0], rule, *rows[1:]))


def _md(text: str) -> str:
    return text.translate(MARKDOWN)


def latex(grids: Sequence[Grid], notes: Sequence[str]) -> str:
    r"""The grids as booktabs tables, ready for \input; the notes become comments."""
    comments = [f"% note: {' '.join(note.split())}" for note in notes]
    return "\n".join([r"% needs \usepackage{booktabs}", *map(_tex_table, grids), *comments]) + "\n"


def _tex_table(grid: Grid) -> str:
    marks = {BEST: r"\textbf{bold}", ABOVE: r"\underline{underlined}"}
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(grid.title)}}}", rf"\label{{tab:{_slug(grid.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * len(grid.label_heads)}{'r' * len(grid.heads)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, (*grid.label_heads, *grid.heads))) + r" \\", r"\midrule"]
    for labels, cells in zip(grid.labels, grid.cells, strict=True):
        shown = [_marked(cell, _tex, r"\textbf{%s}", r"\underline{%s}") for cell in cells]
        lines.append(" & ".join([*map(_tex, labels), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if grid.needed:
        legend = "; ".join(f"{marks.get(mark, _tex(mark))}: {_tex(meaning)}" for mark, meaning in grid.needed)
        lines.append(rf"\par\smallskip{{\footnotesize {legend}}}")
    return "\n".join([*lines, r"\end{table}"])


def _slug(title: str) -> str:
    """A name for \\ref: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()


def _tex(text: str) -> str:
    return text.translate(LATEX)


def _marked(cell: Cell, escape: Callable[[str], str], best: str, above: str) -> str:
    text = escape(cell.text)
    text = above % text if ABOVE in cell.marks else text
    text = best % text if {BEST, BETTER, WORSE} & set(cell.marks) else text
    return f"{text} {escape(cell.spoken)}".rstrip()


# ------------------------------------------------------------------------------------------------ CSV, JSON


def print_grids(grids: Sequence[Grid], form: str, notes: Sequence[str]) -> None:
    """Grids on the screen, or as Markdown or LaTeX, with what there is to say about them."""
    if form == "rich":
        print_rich(grids, notes)
    else:
        write((markdown if form == "md" else latex)(grids, notes))


def write_records(records: Sequence[Mapping[str, Any]], form: str, notes: Sequence[str]) -> None:
    """Records as CSV or JSON; what there is to say about them goes to stderr."""
    write(to_csv(records) if form == "csv" else to_json(records))
    for note in notes:
        warn(note)


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV; a list becomes its items with spaces between, None an empty field."""
    out = io.StringIO()
    heads = list(dict.fromkeys(head for record in records for head in record))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_csv, heads))
    writer.writerows([_csv(record.get(head)) for head in heads] for record in records)
    return out.getvalue()


def _csv(value: Any) -> Any:
    """Text on one line; if a spreadsheet would take it for a formula, with an apostrophe before it. Numbers stay."""
    if not isinstance(value, str | list):
        return value
    text = printable(" ".join(map(str, value)) if isinstance(value, list) else value)
    return f"'{text}" if text.startswith(FORMULA) else text


def to_json(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as a JSON list."""
    return json.dumps(records, indent=1) + "\n"
