"""One self-contained HTML page about some runs: no network, no script, light and dark, from a phone to paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from rela_cli.config.schema import NETWORKS
from rela_cli.report.differences.paired import AXES, cost_share, difference_at_budget, signed
from rela_cli.report.figures.plots import PLOT_KINDS, plots
from rela_cli.report.figures.series import Group, groups_of, trained_columns
from rela_cli.report.figures.style import matplotlib_settings
from rela_cli.report.grids.cells import MISSING, or_missing
from rela_cli.report.page.html import dark_shades, details, figure_html, grids_html, page_section
from rela_cli.report.results import run_files
from rela_cli.report.results.comparison import (
    Column,
    Protocol,
    Result,
    columns_of,
    measured_by,
    results_in,
    score,
)
from rela_cli.report.results.costs import account_of
from rela_cli.report.results.settings import TARGET_PARTS, part_of
from rela_cli.report.tables import transfer, transfer_grids
from rela_cli.report.tables.tables import Parts, grids_of, notes_of
from rela_cli.store import files
from rela_cli.store.beside import files_in
from rela_cli.terminal import as_duration, plural

BY_BUDGET = ("training", "trace")  # a plot for each budget: the page unfolds the one with most ways to compare
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Picture:
    """An image as PNG, and the name of its class if that is known."""

    png: bytes
    label: str | None


@dataclass(frozen=True)
class Neighbourhood:
    """A test image, and the train images nearest to it by the untrained and by the trained backbone."""

    query: Picture
    before: tuple[Picture, ...]
    after: tuple[Picture, ...]


@dataclass(frozen=True)
class PageInputs:
    """All that a page is made of; `neighbours` by the name of a run, or why there are none."""

    results: Sequence[Result]
    unfinished: Sequence[Path]
    protocols: Sequence[Protocol]
    shown: Protocol | None
    axis: str
    neighbours: Mapping[str, Sequence[Neighbourhood] | str]
    notes: Sequence[str]
    heading: str


def page(found: PageInputs) -> str:
    """The whole page."""
    groups = groups_of(found.results)
    title = found.heading or heading(groups)
    body = [
        f"<header><h1>{escape(title)}</h1>{glance(found, groups)}</header>",
        page_section("Accuracy", tables(found)),
        page_section("On other data", on_other_data(found)),
        page_section("Plots", figures(found)),
        page_section("Nearest neighbours", neighbours_section(found.neighbours)),
        page_section("Cost", grids_html(grids_of(found.results, [], Parts(cost=True)))),
        page_section("What was run", run_table(found) + notes(found)),
        page_section("To repeat it", commands(found.results) + configs(groups) + versions_section(found.results)),
    ]
    shades = dark_shades("".join(body))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{CSS}{shades}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def heading(groups: Sequence[Group]) -> str:
    """The settings of the runs, or of several the names of their data sets."""
    if len(groups) == 1:
        return groups[0].name
    return ", ".join(dict.fromkeys(dict(group.shared).get("dataset", "") for group in groups)) or "rela"


# ------------------------------------------------------------------------------------------------- at a glance


EXPLANATIONS = (
    "Plain is the self-supervised method without a prior.",
    "The prior alone is what the prior, made once and frozen, reaches without any learner: its whitened features.",
    "Untrained is the learner before its first step.",
)


def glance(found: PageInputs, groups: Sequence[Group]) -> str:
    """One sentence for the best ReLA cell of each group, beside plain on everything; honest about the interval."""
    if found.shown is None:
        return "<p class=lead>No run has been probed, so there is no number yet.</p>"
    told = [(group, line) for group in groups if (line := sentence(group, found.shown, found.axis))]
    names = [f"<b>{escape(group.name)}</b><br>" * (len(groups) > 1) for group, _ in told]
    lines = "".join(f"<p class=lead>{name}{line}</p>" for name, (_, line) in zip(names, told, strict=True))
    network = NETWORKS.get(found.shown.network, "a network of the method's")
    how = f"Top-1 on test by the {found.shown.name} probe of the {found.shown.network} network, {network}."
    return f"{lines}<p class=note>{escape(' '.join([how, *EXPLANATIONS]))}</p>"


def sentence(group: Group, protocol: Protocol, axis: str) -> str:
    """What the best ReLA cell reaches, what plain on everything does, and whether the prior alone is better."""
    best = best_cell(group, protocol)
    if best is None:
        return ""
    mean, n, budget, column = best
    row = group.row(budget)
    text = f"<b>{escape(column.name)}</b> at {100 * budget:g} % of the data an epoch: <b>{100 * mean:.1f} %</b> "
    text += f"(n = {n})"
    star = difference_at_budget(group.results, row, column.settings, protocol, 1.0)
    alone = beside_alone(group, best, protocol)
    if star is None:
        return f"{text}; there is no plain run on everything at the same seeds to compare with.{alone}"
    share = cost_share(group.results, row, column.settings, axis)
    text += f", {signed(star.mean)} points against plain on everything"
    if star.low is not None:
        text += f" (95 % interval {signed(star.low)} to {signed(star.high)})"
    return text + (f", for {100 * share:.0f} % of its {AXES[axis]}." if share else ".") + alone


def beside_alone(group: Group, best: tuple[float, int, float, Column], protocol: Protocol) -> str:
    """Whether its prior alone is better than the best ReLA cell: then a reader asks what the training is for."""
    mean, _, budget, column = best
    targets = part_of(column.settings, TARGET_PARTS)
    for other in columns_of(group.results):
        if other.kind == "prior_alone" and other.settings == targets:
            value = score(group.results, group.row(budget), other, protocol)
            if value is not None:
                better = value.mean > mean
                word = "<b>The prior alone is better</b>" if better else "The prior alone is not better"
                return f" {word}: {100 * value.mean:.1f} %."
    return ""


def best_cell(group: Group, protocol: Protocol) -> tuple[float, int, float, Column] | None:
    """Mean, n, budget and column of the highest ReLA cell whose prior has not seen the labels, by its name in plots."""
    cells = []
    for column, *_ in trained_columns(group):
        for budget in group.budgets if column.kind == "prior" else ():
            value = score(group.results, group.row(budget), column, protocol)
            here = results_in(group.results, group.row(budget), column)
            if value and not any(result.raw.get("prior_saw_labels") for result in here):
                cells.append((value.mean, len(value.seeds), budget, column))
    return max(cells, key=lambda cell: cell[0], default=None)


# ------------------------------------------------------------------------------------------------------ tables


def tables(found: PageInputs) -> str:
    """Scores and differences by the protocol shown; the other protocols to unfold."""
    has_plain = any(result.finished and not result.variant for result in found.results)
    parts = Parts(differences=has_plain, axis=found.axis)
    others = [protocol for protocol in found.protocols if protocol != found.shown]
    first = grids_html(grids_of(found.results, [found.shown], parts)) if found.shown else ""
    return first + "".join(
        details(f"the same by {p.title}", grids_html(grids_of(found.results, [p], parts))) for p in others
    )


# ------------------------------------------------------------------------------------------------------- plots


def on_other_data(found: PageInputs) -> str:
    """What `rela probe RUN` has measured of the runs, as `rela table --on all` shows it; nothing where nobody asked."""
    if not any(files_in(result.folder) for result in found.results):
        return ""
    lines = transfer.lines_of(found.results, [], [])
    transfer.with_one_size(lines)
    datasets = transfer.chosen_datasets(lines, [transfer.ALL_DATASETS])
    protocols = transfer.protocols_in(lines, datasets, "all", "all")
    return grids_html(transfer_grids.grids_on(lines, datasets, protocols))


def figures(found: PageInputs) -> str:
    """Every plot as inline SVG in the page's own colours."""
    with matplotlib_settings():
        every = list(plots(found.results, [found.shown] if found.shown else [], found.axis, PLOT_KINDS))
        shown, folded = [plot for plot in every if plot.kind not in BY_BUDGET], []
        for kind in BY_BUDGET:
            of_kind = sorted((plot for plot in every if plot.kind == kind), key=lambda plot: plot.rank, reverse=True)
            shown += of_kind[:1]
            folded += of_kind[1:]
        drawn, rest = ("".join(map(figure_html, some)) for some in (shown, folded))
    words = plural(len(folded), "more plot") + ": training and what the switch saw, at each budget"
    more = details(words, f"<div class=plots>{rest}</div>") if folded else ""
    return f"<div class=plots>{drawn}</div>{more}" if drawn else ""


# -------------------------------------------------------------------------------------------------- neighbours


def neighbours_section(by_run: Mapping[str, Sequence[Neighbourhood] | str]) -> str:
    """A grid of images for each run shown, or why there is none."""
    return "".join(
        f"<h3>{escape(name)}</h3>" + (f"<p class=note>{escape(what)}</p>" if isinstance(what, str) else grid_of(what))
        for name, what in by_run.items()
    )


def grid_of(found: Sequence[Neighbourhood]) -> str:
    """Query, nearest before, nearest after; a frame where the class is the query's."""
    rows = "".join(f"<tr>{neighbour_cells(one)}</tr>" for one in found)
    heads = "".join(f"<th>{head}" for head in NEIGHBOUR_HEADS)
    counts = [sum(near.label == one.query.label for near in side) for one in found for side in (one.before, one.after)]
    total = sum(len(one.after) for one in found)
    note = "nearest train images by cosine of the representation, nearest first"
    if found and found[0].query.label is not None:
        note += f"; framed: same class, {sum(counts[::2])} of {total} before and {sum(counts[1::2])} of {total} after"
    table = f"<table class=near><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class=scroll>{table}</div><p class=note>{note}</p>"


NEIGHBOUR_HEADS = ("test image", "untrained learner", "trained backbone")


def neighbour_cells(one: Neighbourhood) -> str:
    """Query, neighbours before, neighbours after; each cell knows its head, which stands over it on a narrow screen."""
    before, after = ("".join(image(near, one.query.label) for near in side) for side in (one.before, one.after))
    sides = zip(NEIGHBOUR_HEADS, (image(one.query, None), before, after), strict=True)
    return "".join(f'<td data-head="{head}">{images}</td>' for head, images in sides)


def image(picture: Picture, wanted: str | None) -> str:
    """One image, inside the page."""
    same = " class=same" if wanted is not None and picture.label == wanted else ""
    name = escape(picture.label or "image", quote=True)
    data = base64.b64encode(picture.png).decode()
    return f'<img{same} alt="{name}" title="{name}" src="data:image/png;base64,{data}">'


# -------------------------------------------------------------------------------------------------------- runs


def run_table(found: PageInputs) -> str:
    """One line a run, unfinished ones with their reason."""
    heads = ("run", "prior", "budget", "seed", "status", "top-1 %", "time", "switch at step")
    rows = [run_line(result, found.shown) for result in found.results] + [*map(unfinished_line, found.unfinished)]
    body = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{name}</th>" for name in heads)
    table = f"<table class=runs><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    done = sum(result.finished for result in found.results)
    said = f"{plural(len(rows), 'run')}: {done} finished, {len(rows) - done} not"
    return details(said, f"<div class=scroll>{table}</div>", is_open=len(rows) <= 12)


def run_line(result: Result, protocol: Protocol | None) -> list[str]:
    """The cells of a run with a result."""
    raw, account = result.raw, account_of([result])
    top1 = measured_by(raw.get("probe")).get(protocol) if protocol else None
    return [
        result.folder.name,
        dict(result.variant).get("prior", "none"),
        f"{result.budget:g}",
        str(result.seed),
        str(raw["status"]),
        MISSING if top1 is None else f"{100 * top1:.1f}",
        or_missing(account.seconds["total"] if account else None, partial(as_duration, exact=True)),
        str(raw.get("switch_step") or MISSING),
    ]


def unfinished_line(path: Path) -> list[str]:
    """The cells of a run without one."""
    facts = run_files.read_manifest(path)
    reason = str(facts.get("reason") or "").partition("\n")[0]
    status = str(facts.get("status", "not started"))
    return [path.name, *[MISSING] * 3, f"{status}: {reason}" if reason else status, *[MISSING] * 3]


def notes(found: PageInputs) -> str:
    """What a reader has to know about what is missing."""
    every = [*notes_of(found.results), *found.notes]
    return "".join(f"<p class=note>note: {escape(note)}</p>" for note in every)


# --------------------------------------------------------------------------------------------------- to repeat


def commands(results: Sequence[Result]) -> str:
    """The command of each run."""
    every = [str(run_files.read_manifest(result.folder).get("command") or "") for result in results]
    known = [command for command in dict.fromkeys(every) if command]
    return details("commands, one a run", f"<pre>{escape(chr(10).join(known))}</pre>") if known else ""


def configs(groups: Sequence[Group]) -> str:
    """The whole config of the first run of each group."""
    texts = []
    for group in groups:
        path = group.results[0].folder / "config.yaml"
        if path.is_file():
            text = path.read_bytes().decode(errors="backslashreplace")
            texts.append(details(f"config.yaml of {path.parent.name}", f"<pre>{escape(text)}</pre>"))
    return "".join(texts)


def versions_section(results: Sequence[Result]) -> str:
    """What the runs were made with: each value once."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for key, value in files.section(run_files.read_manifest(result.folder), "versions").items():
            found.setdefault(key, {})[str(value)] = None
    items = "".join(f"<dt>{escape(key)}<dd>{escape(', '.join(values))}" for key, values in found.items())
    return f"<dl>{items}</dl>" if items else ""
