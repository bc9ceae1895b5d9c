"""A grid of cells as a rich table, Markdown or LaTeX, and records as CSV or JSON. Knows nothing about runs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rela_cli.terminal import printable

MISSING = "—"
MINUS = "\N{MINUS SIGN}"  # as wide as a plus, unlike a hyphen
LONG = 14  # a line of a label with more characters breaks behind its "=" when the screen is narrow
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how text begins that spreadsheets calculate
BEST, ABOVE = "{best}", "{above}"  # in a legend: the format's own word for these marks
SEEN = "†"  # a cell whose prior has seen the labels that it is judged by
UNKNOWN = "?"  # a cell of whose prior nobody says which labels it has seen
ASCII = str.maketrans({"±": "+/-", MISSING: "--", "·": "-", SEEN: "#", MINUS: "-", "≤": "<="})
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
        "\n": " ",
    }
)


@dataclass(frozen=True)
class Cell:
    """A value, what belongs behind or under it, and how it stands out."""

    text: str = MISSING
    detail: str = ""
    best: bool = False
    above: bool = False  # better than the reference column


@dataclass(frozen=True)
class Grid:
    """A titled table: row labels under `label_heads`, then one `Cell` a row under each of `heads`.

    A head may have several lines. `legend` is pairs of a mark and its meaning.
    """

    title: str
    label_heads: tuple[str, ...]
    heads: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[tuple[Cell, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()


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
    """Print grids so that they stay readable at the console's width."""
    console = console or Console(highlight=False)
    marks = {BEST: "bold", ABOVE: "underlined"} if console.is_terminal else {BEST: "!", ABOVE: "^"}
    for grid in grids:
        console.print(_text(grid.title, console, "bold"))
        for table in _fitting(grid, console):
            console.print(table)
        legend = "; ".join(f"{marks.get(mark, mark)}: {meaning}" for mark, meaning in grid.legend)
        console.print(_text(legend + "\n" * bool(legend), console, "dim"))
    for note in notes:
        console.print(_text(printable(f"note: {note}"), console))


def _fitting(grid: Grid, console: Console) -> list[Table]:
    """One table if it fits on the screen, else one with two-line cells, else several below one another."""
    one_line = _table(grid, range(len(grid.heads)), console, tight=False)
    if _fits(one_line, console):
        return [one_line]
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
    for labels, cells in zip(grid.labels, grid.cells, strict=True):
        shown = [_text(_broken(label) if tight else label, console) for label in labels]
        table.add_row(*shown, *(_cell(cells[column], console, "\n" if tight else " ") for column in columns))
    return table


def _broken(label: str) -> str:
    return "\n".join(word.replace("=", "=\n", 1) if len(word) > LONG else word for word in label.split())


def _cell(cell: Cell, console: Console, glue: str) -> Text:
    """Bold and underlined on a terminal; elsewhere that would be invisible, so signs take its place."""
    text = _text(cell.text, console)
    if console.is_terminal:
        text.stylize(" ".join(["bold"] * cell.best + ["underline"] * cell.above))
    else:
        text.append("!" * cell.best + "^" * cell.above)
    return text.append_text(_text(glue + cell.detail, console)) if cell.detail else text


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
        if grid.legend:
            parts.append("; ".join(f"{marks.get(mark, _md(mark))}: {_md(meaning)}" for mark, meaning in grid.legend))
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
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(grid.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * len(grid.label_heads)}{'r' * len(grid.heads)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, (*grid.label_heads, *grid.heads))) + r" \\", r"\midrule"]
    for labels, cells in zip(grid.labels, grid.cells, strict=True):
        shown = [_marked(cell, _tex, r"\textbf{%s}", r"\underline{%s}") for cell in cells]
        lines.append(" & ".join([*map(_tex, labels), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if grid.legend:
        legend = "; ".join(f"{marks.get(mark, _tex(mark))}: {_tex(meaning)}" for mark, meaning in grid.legend)
        lines.append(rf"\par\smallskip{{\footnotesize {legend}}}")
    return "\n".join([*lines, r"\end{table}"])


def _tex(text: str) -> str:
    return text.translate(LATEX)


def _marked(cell: Cell, escape: Callable[[str], str], best: str, above: str) -> str:
    text = escape(cell.text)
    text = above % text if cell.above else text
    text = best % text if cell.best else text
    return f"{text} {escape(cell.detail)}".rstrip()


# ------------------------------------------------------------------------------------------------ CSV, JSON


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV; a list becomes its items with spaces between, None an empty field."""
    out = io.StringIO()
    heads = list(dict.fromkeys(head for record in records for head in record))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_csv, heads))
    writer.writerows([_csv(record.get(head)) for head in heads] for record in records)
    return out.getvalue()


def _csv(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay as they are."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def to_json(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as a JSON list."""
    return json.dumps(records, indent=1) + "\n"
