"""How our plots look: one colour and one marker a prior for ever, direct labels, little ink.

The colours are Okabe and Ito's, told apart also by people who see fewer; lines differ in their marker as well.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rela_cli.errors import MissingError
from rela_cli.report.figures.ink import readable_ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#1d2228", "#666d75", "#e3e5e8", "#ffffff"  # text, notes and axes, grid, ground
PRIOR_STYLES = {  # colour and marker of a prior, by its name or the start of it
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
SPARE_STYLES = (("#4B6E00", "<"), ("#2B3A8C", "8"), ("#8A4B2A", "H"), ("#A03C78", "p"))  # of all others, by name
LETTERS = 17  # of a note that fit in an inch
SIZE = (5.8, 3.9)  # inches; small, so that text is large beside it on a page
AXES_START, AXES_END = 0.61, 4.06  # inches: where axes beside labels begin and end
LABEL_LETTER, LABEL_ROW = 0.071, 0.145  # inches: of a label in the margin
TICK_AIR = 0.06  # inches: left of tick labels
OUTLIER_FACTOR = 3  # times worse than on something else is a number that leaves the axes
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


class PriorStyle(NamedTuple):
    """How a line is drawn."""

    colour: str
    marker: str


class Box(NamedTuple):
    """A rectangle, in points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def lies_in(self, other: Box) -> bool:
        """Whether all of it does."""
        return other.x0 <= self.x0 and self.x1 <= other.x1 and other.y0 <= self.y0 and self.y1 <= other.y1

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


class Spot(NamedTuple):
    """A point with a text: where it is in points, and in data."""

    at: tuple[float, ...]
    text: str
    place: tuple[float, float]

    def is_near(self, other: Spot) -> bool:
        """Whether one text will do for both."""
        apart = sum(abs(one - another) for one, another in zip(self.at, other.at, strict=True))
        return self.text == other.text and apart < NEAR


class Label(NamedTuple):
    """Words in the right margin, at the height of what they name; `x` is where that ends, left of the margin."""

    y: float
    text: str
    colour: str
    bold: bool = False
    x: float | None = None


def style_of(prior: str) -> PriorStyle:
    """The colour and marker of a prior; a prior looks alike in every plot."""
    starts = [name for name in PRIOR_STYLES if prior == name or prior.startswith(f"{name}_")]
    if starts:
        return PriorStyle(*PRIOR_STYLES[max(starts, key=len)])
    return PriorStyle(*SPARE_STYLES[int(hashlib.sha256(prior.encode()).hexdigest(), 16) % len(SPARE_STYLES)])


@contextmanager
def matplotlib_settings() -> Iterator[None]:
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
    """A title, and notes below it broken to the figure's width; the height at which the axes may start.

    A page that sets them as text of its own knows them by their gid: `title`, and `note0`, `note1`, ... for all lines
    of one note.
    """
    width, height = figure.get_size_inches()
    letters = int(width * (1 - left) * LETTERS)
    broken = [(f"note{number}", line) for number, note in enumerate(notes) for line in textwrap.wrap(note, letters)]
    figure.text(left, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", va="top", gid="title")
    for i, (gid, line) in enumerate(broken):
        figure.text(left, 1 - (0.36 + 0.155 * i) / height, line, fontsize=7.5, color=SOFT, va="top", gid=gid)
    return float(1 - (0.50 + 0.155 * len(broken)) / height)


def take_titles(figure: Figure) -> list[str]:
    """Take title and notes off a figure, for a page that sets them itself."""
    found: dict[str, str] = {}
    for text in list(figure.texts):
        gid = str(text.get_gid() or "")
        if gid == "title" or gid.startswith("note"):
            found[gid] = f"{found.get(gid, '')} {text.get_text()}".strip()
            text.remove()
    return list(found.values())


def lighter(style: PriorStyle, times: int) -> PriorStyle:
    """Half way to white, so many times: for more variants of a prior than there are kinds of lines."""
    from matplotlib.colors import to_hex, to_rgb

    white = 1 - 0.5**times
    return style._replace(
        colour=to_hex([(1 - white) * part + white for part in to_rgb(style.colour)]) if times else style.colour
    )


def margin_figure(title: str, notes: Sequence[str], labels: Sequence[Label]) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, and as much room right of them and in height as its labels want."""
    longest = max((len(line) for label in labels for line in label.text.splitlines()), default=0)
    margin = max(SIZE[0] - AXES_END, 0.45 + LABEL_LETTER * longest)
    width, height = AXES_END + margin, max(SIZE[1], 1.6 + LABEL_ROW * len(labels))
    figure, (axes,) = new_figure(width, height)
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
    where = lambda x, y: map(float, per_pixel * axes.transData.transform((x, y)))  # noqa: E731 - in points
    frame = Box(*(per_pixel * float(edge) for edge in axes.bbox.extents))
    spots = [[Spot((*where(x, y),), text, (x, y)) for x, y, text in line] for line in lines]
    taken = [box for line in spots for box in boxes_along([spot.at for spot in line])]
    for (x, y), text, place in sorted(min(together) for together in pools(spot for line in spots for spot in line)):
        width = 0.62 * size * len(text)
        boxes = [Box(x + dx * width, y + dy, x + (dx + 1) * width, y + dy + size) for dx, dy in places_around(size)]
        box = min(
            boxes, key=lambda one: OUTLIER_FACTOR * (not one.lies_in(frame)) + sum(one.meets(other) for other in taken)
        )
        taken.append(box)
        at = (box.x0 - x, box.y0 - y)
        axes.annotate(text, place, at, textcoords="offset points", size=size, color=INK, zorder=4)


def pools(spots: Iterable[Spot]) -> list[list[Spot]]:
    """Spots with the same text of which each is near to another one of its pool."""
    found: list[list[Spot]] = []
    for spot in spots:
        near = [pool for pool in found if any(spot.is_near(other) for other in pool)]
        found = [pool for pool in found if pool not in near] + [[spot, *(other for pool in near for other in pool)]]
    return found


def boxes_along(line: Sequence[tuple[float, ...]]) -> Iterator[Box]:
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
    """Labels of so many lines right of the axes, at the height of what they name, but pushed apart.

    What lies above or below the axes has an arrow instead of a line that leads to it.
    """
    figure = axes.figure
    low, high = axes.get_ylim()
    inches = axes.get_position().height * figure.get_size_inches()[1]  # type: ignore[union-attr]
    step = 1.25 * lines * size / 72 / inches
    ordered = sorted(labels, key=lambda label: label.y)
    heights = [(label.y - low) / (high - low) for label in ordered]
    for label, true, place in zip(ordered, heights, push_apart(heights, step), strict=True):
        arrow = "↑ " if true > 1 else "↓ " if true < 0 else ""
        if not arrow:
            lead_to(axes, label, true, place)
        axes.text(
            1.045, place, arrow + label.text, transform=axes.transAxes, fontsize=size, va="center",
            color=readable_ink(label.colour, PAPER), fontweight="bold" if label.bold else "normal",
        )  # fmt: skip


def lead_to(axes: Axes, label: Label, true: float, place: float) -> None:
    """A thin line from where something ends, or from the edge, to its label."""
    start = axes.transAxes.inverted().transform(axes.transData.transform((label.x, label.y)))[0] if label.x else 1.005
    axes.plot(
        [start, 1.005, 1.035], [true, true, place], transform=axes.transAxes, color=label.colour, lw=0.7,
        alpha=0.6 if label.x else 1, clip_on=False, zorder=1, gid="lead",
    )  # fmt: skip


def push_apart(places: Sequence[float], step: float) -> list[float]:
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


def room_for_ticks(figure: Figure) -> None:
    """Move the left edge of the axes, and columns apart, until what stands left of them has room there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer, width = FigureCanvasAgg(figure).get_renderer(), figure.get_size_inches()[0]
    panels = [axes for axes in figure.axes if axes.get_visible()]
    starts = sorted({round(axes.get_position().x0, 3) for axes in panels})
    before = {
        start: max((p.x1 for a in panels if (p := a.get_position()).x1 <= start), default=0.0) for start in starts
    }
    lacking = [0.0, 0.0]  # of the first column, of the others; shares of the figure's width
    for axes in panels:
        start = round(axes.get_position().x0, 3)
        used = axes.get_tightbbox(renderer).x0 / figure.dpi / width  # type: ignore[union-attr]
        first = start == starts[0]
        lacking[not first] = max(lacking[not first], before[start] + TICK_AIR / width - used)
    pars = figure.subplotpars
    panel = panels[0].get_position().width
    left = pars.left + lacking[0]
    for text in figure.texts:  # titles stand above the axes' edge
        if abs(text.get_position()[0] - pars.left) < 1e-6:
            text.set_x(left)
    figure.subplots_adjust(left=left, wspace=pars.wspace + lacking[1] / panel)


def save_figure(figure: Figure, path: Path) -> list[Path]:
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
