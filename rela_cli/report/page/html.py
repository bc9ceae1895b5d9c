"""Tables and plots as HTML: the pieces that a page is put together from."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

from rela_cli.report.figures.ink import readable_ink
from rela_cli.report.figures.series import Plot
from rela_cli.report.figures.style import GRID, INK, PAPER, PRIOR_STYLES, SOFT, take_titles
from rela_cli.report.grids.brief import brief
from rela_cli.report.grids.cells import ABOVE, BEST, Cell, Grid, transposed, without_empty
from rela_cli.report.grids.screen import said_once

REM_PER_INCH = 7.0  # of a plot: its text is then a little smaller than the page's
WIDE_REM = 42.0  # rem; wider plots have a row of their own
BROAD = 8  # columns; broader tables have their notes below and not beside them
DARK = "#15181c"  # the ground of page.css where the reader prefers dark
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
THEMED = {INK: "--ink", SOFT: "--soft", GRID: "--grid", PAPER: "--paper", PRIOR_STYLES["plain"][0]: "--plain"}


def page_section(title: str, inside: str) -> str:
    """A part of the page; nothing where there is nothing to say."""
    return f"<section><h2>{escape(title)}</h2>\n{inside}</section>" if inside else ""


def details(summary: str, inside: str, is_open: bool = False) -> str:
    """What a reader may unfold."""
    return f"<details{' open' * is_open}><summary>{escape(summary)}</summary>{inside}</details>"


def with_line_breaks(text: str) -> str:
    """Escaped, with its own line breaks."""
    return escape(text).replace("\n", "<br>")


def grids_html(grids: Sequence[Grid]) -> str:
    """Tables without what is empty in them; what a mark means is said once, at the last table that has it."""
    full = [(grid, gone) for grid, gone in map(without_empty, grids) if grid.cells]
    shown = [(made_tall(one), gone) for grid, gone in full for one in pieces(brief(grid))]
    last = {line: number for number, (grid, _) in enumerate(shown) for line in grid.needed}
    return "".join(
        grid_html(grid, legend_html([line for line in grid.needed if last[line] == number], gone))
        for number, (grid, gone) in enumerate(shown)
    )


def legend_html(lines: Sequence[tuple[str, str]], gone: Sequence[str]) -> str:
    """What marks and words mean; `gone` are columns without any result."""
    marks = {BEST: "<b>bold</b>", ABOVE: "<u>underlined</u>"}
    legend = [f"{marks.get(mark, escape(mark))}: {escape(meaning)}" for mark, meaning in lines]
    legend += [f"no result: {escape(', '.join(gone))}"] * bool(gone)
    return f"<p class=note>{'; '.join(legend)}</p>" if legend else ""


def pieces(grid: Grid) -> tuple[Grid, ...]:
    """A broad table of several protocols as a table for each of them."""
    return grid.parts if grid.rest and len(grid.heads) > BROAD else (grid,)


def made_tall(grid: Grid) -> Grid:
    """The rows of a broad table as columns, where they are fewer: a page is higher than it is broad."""
    return transposed(grid) if len(grid.heads) > max(BROAD, len(grid.labels)) else grid


def grid_html(grid: Grid, legend: str) -> str:
    """A title, a table and its legend; for a narrow screen the table with rows as columns, where these are fewer."""
    tables = table_html(grid)
    if len(grid.labels) < len(grid.heads):
        tables = table_html(grid, " broad") + table_html(transposed(grid), " tall")
    wide = " wide" * (len(grid.heads) > BROAD)
    return f'<div class="grid{wide}"><h3>{escape(grid.title)}</h3>{tables}{legend}</div>\n'


def table_html(grid: Grid, way: str = "") -> str:
    """A table that scrolls in its own box when the screen is narrow; `way`: for which screens it is."""
    heads = "".join(f'<th class=label scope="col">{with_line_breaks(head)}</th>' for head in grid.label_heads)
    heads += "".join(f'<th scope="col">{with_line_breaks(head)}</th>' for head in grid.heads)
    body = []
    for labels, cells in zip(said_once(grid.labels), grid.cells, strict=True):
        row = [f'<th scope="row">{with_line_breaks(label)}</th>' for label in labels]
        body.append(f"<tr>{''.join([*row, *map(cell_html, cells)])}</tr>")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll{way}">{table}</div>' if way else f"<div class=scroll>{table}</div>"


def cell_html(cell: Cell) -> str:
    """A number, with its detail in small letters."""
    text = escape(cell.text) if set(cell.marks) <= {ABOVE} else f"<b>{escape(cell.text)}</b>"
    text = f"<u>{text}</u>" if ABOVE in cell.marks else text
    return f"<td>{text} <small>{escape(cell.spoken)}</small></td>" if cell.spoken else f"<td>{text}</td>"


def figure_html(plot: Plot) -> str:
    """One plot at the size of the page's text; its title and notes are text of the page."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = plot.name  # ids have to differ from plot to plot in one page
    out = io.StringIO()
    drawn = plot.draw()
    title, *notes = take_titles(drawn)
    drawn.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.03)
    svg = out.getvalue()
    points = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    width = REM_PER_INCH * float(points[1]) / 72 if points else REM_PER_INCH
    caption = "".join(f"<span>{escape(note)}</span>" for note in notes)
    caption = f"<figcaption><b>{escape(title)}</b>{caption}</figcaption>"
    style = f'style="width:{width:.1f}rem"' + " class=wide" * (width > WIDE_REM)
    return f'<figure {style} role=img aria-label="{escape(plot.words)}">{caption}<div>{themed(svg)}</div></figure>\n'


def themed(svg: str) -> str:
    """An SVG as part of a page: without its header, at the width of its box, in colours that follow light and dark."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    for colour, name in THEMED.items():
        svg = svg.replace(colour, f"var({name})")
    return COLOUR.sub(lambda found: f"var({variable(found[0])}, {found[0]})", svg)


def variable(colour: str) -> str:
    """The CSS variable of a colour that has a lighter shade on a dark ground."""
    return f"--c{colour[1:]}"


def dark_shades(body: str) -> str:
    """CSS: each colour of the plots in a shade that can be read on the dark ground."""
    used = sorted(set(re.findall(r"var\(--c([0-9a-f]{6}),", body)))
    shades = "".join(f"{variable('#' + one)}:{readable_ink('#' + one, DARK)};" for one in used)
    return f"@media (prefers-color-scheme: dark) {{ :root {{ {shades} }} }}" if used else ""
