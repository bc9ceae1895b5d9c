"""What is printed or written: grids as a terminal, Markdown or LaTeX shows them, and records as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rela_cli.report.grids.cells import ABOVE, BEST, BETTER, MINUS, MISSING, SEEN, WORSE, Cell, Grid
from rela_cli.report.grids.screen import print_rich, write
from rela_cli.store.notices import warn
from rela_cli.terminal import printable

FORMATS = ("rich", "md", "csv", "json", "latex")
FORMULA = ("=", "+", "-", "@", "\t")  # how text begins that spreadsheets calculate

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
    name = re.sub(r"[^A-Za-z0-9]+", "-", grid.title).strip("-").lower()
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(grid.title)}}}", rf"\label{{tab:{name}}}"]
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
