"""How our plots look: one colour and one marker a prior for ever, direct labels, little ink.

The colours are Okabe and Ito's, told apart also by people who see fewer; lines differ in their marker as well.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rela_cli.errors import MissingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#1d2228", "#666d75", "#e3e5e8", "#ffffff"  # text, notes and axes, grid, ground
LOOKS = {  # colour and marker of a prior, by its name or the start of it
    "plain": ("#3c444d", "o"),
    "random_learner": ("#CC79A7", "v"),
    "random": ("#E69F00", "^"),
    "patches": ("#0072B2", "s"),
    "embedded": ("#009E73", "D"),
    "clip": ("#D55E00", "P"),
    "dinov2": ("#56B4E9", "X"),
    "imagenet": ("#7A5195", "h"),
    "CF10-T": ("#8C6D31", "*"),  # the paper's priors that were trained for a table
    "CF100-T": ("#B2182B", ">"),
    "TIN-T": ("#5E4FA2", "p"),
    "IN1K-T": ("#00757A", "d"),
}
SPARE = (("#4B6E00", "<"), ("#2B3A8C", "8"), ("#8A4B2A", "H"), ("#A03C78", "p"))  # for all others, by their names
LETTERS = 17  # of a note that fit in an inch
SIZE = (5.8, 3.9)  # inches; small, so that text is large beside it on a page
AXES_START, AXES_END = 0.61, 4.06  # inches: where axes beside labels begin and end
LABEL_LETTER, LABEL_ROW = 0.071, 0.145  # inches: of a label in the margin
DOT, NEAR = 3.5, 16.0  # points: half a marker, and how near to one another points share a number
RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.dpi": 180,
    "svg.fonttype": "none",
    "svg.hashsalt": "rela",
}


class Look(NamedTuple):
    """How a line is drawn."""

    colour: str
    marker: str


class Box(NamedTuple):
    """A rectangle, in points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


class Label(NamedTuple):
    """Words in the right margin, at the height of what they name."""

    y: float
    text: str
    colour: str
    bold: bool = False


def look(prior: str) -> Look:
    """The same for the same prior in every plot."""
    starts = [name for name in LOOKS if prior == name or prior.startswith(f"{name}_")]
    if starts:
        return Look(*LOOKS[max(starts, key=len)])
    return Look(*SPARE[int(hashlib.sha256(prior.encode()).hexdigest(), 16) % len(SPARE)])


@contextmanager
def ours() -> Iterator[None]:
    """matplotlib with our settings and no others.

    Raises:
        MissingError: it is not installed, as in an environment that is older than the plots.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingError(f"plots need matplotlib ({error}): pip install matplotlib") from error

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)  # type: ignore[arg-type]
        yield


def new_figure(width: float = SIZE[0], height: float = SIZE[1], **grid: Any) -> tuple[Figure, Any]:
    """A figure without pyplot, so without a screen and without global state; its axes as a flat array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(squeeze=False, **grid).ravel()


def titled(figure: Figure, title: str, notes: Sequence[str], left: float = 0.09) -> float:
    """A title, and notes below it broken to the figure's width; the height at which the axes may start."""
    width, height = figure.get_size_inches()
    broken = [line for note in notes for line in textwrap.wrap(note, int(width * (1 - left) * LETTERS))]
    figure.text(left, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", va="top")
    for i, line in enumerate(broken):
        figure.text(left, 1 - (0.36 + 0.155 * i) / height, line, fontsize=7.5, color=SOFT, va="top")
    return float(1 - (0.50 + 0.155 * len(broken)) / height)


def lighter(drawn: Look, times: int) -> Look:
    """Half way to white, so many times: for more variants of a prior than there are kinds of lines."""
    from matplotlib.colors import to_hex, to_rgb

    white = 1 - 0.5**times
    return drawn._replace(
        colour=to_hex([(1 - white) * part + white for part in to_rgb(drawn.colour)]) if times else drawn.colour
    )


def margin_figure(title: str, notes: Sequence[str], labels: Sequence[Label], lines: int = 1) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, and as much room right of them and in height as its labels want."""
    longest = max((len(line) for label in labels for line in label.text.splitlines()), default=0)
    margin = max(SIZE[0] - AXES_END, 0.45 + LABEL_LETTER * longest)
    height = max(SIZE[1], 1.6 + LABEL_ROW * lines * len(labels))
    figure, (axes,) = new_figure(AXES_END + margin, height)
    width = AXES_END + margin
    left = AXES_START / width
    top = titled(figure, title, notes, left)
    figure.subplots_adjust(left=left, right=AXES_END / width, top=top, bottom=0.49 / height)
    return figure, axes


def number_points(axes: Axes, lines: Sequence[Sequence[tuple[float, float, str]]], size: float = 7) -> None:
    """Points (x, y, text) of lines: the text beside its point, where as little as can be stands already.

    Points side by side with the same text share it. The axes have to be done: limits, scales and place.
    """
    axes.get_xlim(), axes.get_ylim()  # until somebody asks, they are not computed
    per_pixel = 72 / axes.figure.dpi
    spots = [[(*(per_pixel * axes.transData.transform((x, y))), text, (x, y)) for x, y, text in line] for line in lines]
    taken = [box for line in spots for box in along([(x, y) for x, y, *_ in line])]
    said: list[tuple[float, float, str]] = []
    for x, y, text, place in sorted(spot for line in spots for spot in line):
        if any(text == other and abs(x - a) + abs(y - b) < NEAR for a, b, other in said):
            continue
        said.append((x, y, text))
        width = 0.62 * size * len(text)
        boxes = [Box(x + dx * width, y + dy, x + (dx + 1) * width, y + dy + size) for dx, dy in places_around(size)]
        box = min(boxes, key=lambda one: sum(one.meets(other) for other in taken))
        taken.append(box)
        at = (box.x0 - x, box.y0 - y)
        axes.annotate(text, place, at, textcoords="offset points", size=size, color=INK, zorder=4)


def along(line: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """What a line covers: its markers, and a small box every few points from one to the next."""
    for x, y in line:
        yield Box(x - DOT, y - DOT, x + DOT, y + DOT)
    for (x, y), (u, v) in pairwise(line):
        count = 1 + int(max(abs(u - x), abs(v - y)) / DOT)
        steps = [((u - x) * i / count + x, (v - y) * i / count + y) for i in range(1, count)]
        yield from (Box(a - 1, b - 1, a + 1, b + 1) for a, b in steps)


def places_around(size: float) -> list[tuple[float, float]]:
    """Where a text may begin: in its own widths right of the point, and in points above it; the best first."""
    below, above = -size - DOT - 1, DOT + 1
    near = [(dx, dy) for dy in (below, above) for dx in (0.35, -0.5, -1.35)]
    return [*near, *((dx, dy + step) for step in (-size, size) for dx, dy in near)]


def margin_labels(axes: Axes, labels: Sequence[Label], size: float = 8, lines: int = 1) -> None:
    """Labels of so many lines right of the axes, at the height of what they name, but pushed apart."""
    figure = axes.figure
    low, high = axes.get_ylim()
    inches = axes.get_position().height * figure.get_size_inches()[1]  # type: ignore[union-attr]
    step = 1.25 * lines * size / 72 / inches
    ordered = sorted(labels, key=lambda label: label.y)
    places = spread([(label.y - low) / (high - low) for label in ordered], step)
    for label, place in zip(ordered, places, strict=True):
        true = (label.y - low) / (high - low)
        axes.plot(
            [1.005, 1.035], [true, place], transform=axes.transAxes, color=label.colour, lw=0.7, clip_on=False, zorder=1
        )
        weight = "bold" if label.bold else "normal"
        axes.text(
            1.045, place, label.text, transform=axes.transAxes, color=label.colour, fontsize=size, va="center",
            fontweight=weight,
        )  # fmt: skip


def spread(places: Sequence[float], step: float) -> list[float]:
    """Ascending places, moved until neighbours are `step` apart; in [0, 1] if they fit (pool and average)."""
    pools: list[list[float]] = []  # each: sum of (place - rank * step), count
    for rank, place in enumerate(places):
        pools.append([place - rank * step, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    flat = [total / count for total, count in pools for _ in range(int(count))]
    above = len(flat) - 1
    return [min(max(v, 0.0) + rank * step, 1 - (above - rank) * step) for rank, v in enumerate(flat)]


def save(figure: Figure, path: Path) -> list[Path]:
    """`path` as .png and .svg; the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(path.name + end) for end in (".png", ".svg")]
    box = "tight" if overflows(figure) else None
    figure.savefig(written[0], bbox_inches=box)
    figure.savefig(written[1], bbox_inches=box, metadata={"Date": None})
    return written


def overflows(figure: Figure) -> bool:
    """Whether something, a long label say, lies outside of the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    return bool(min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height)
