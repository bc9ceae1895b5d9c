"""What is compared with what: runs sorted into rows and columns, the score of a cell, and what it cost.

Rows are what plain and ReLA share (dataset, learner, method, optimizer, epochs, ...) at one budget; columns are
the ways to get there. Only runs that differ in nothing but their seed are averaged.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rela_cli.config.schema import NETWORKS, PROTOCOLS
from rela_cli.errors import ConfigError, RelaError, did_you_mean
from rela_cli.report.grids.cells import SEEN, UNKNOWN
from rela_cli.report.results.prior_names import part_name, prior_names
from rela_cli.report.results.settings import (
    LIVE,
    LIVE_KEY,
    NAMED_PARTS,
    PRESET,
    PRESET_SETTINGS,
    TARGET_PARTS,
    VARIANT,
    VIEWS_KEY,
    Settings,
    differing,
    flatten,
    is_preset,
    natural_order,
    part_of,
    settings_text,
)
from rela_cli.store.older_results import is_unknown

PRIOR_ORDER = ("random_learner", "random", "patches", "embedded")  # the order of columns; others follow by name

FINETUNED = "all weights trained, with this share of the labels"

SEGMENTED = {  # mean IoU
    "segment-linear": "mean IoU of a linear head on the frozen feature map",
    "segment-fcn": "mean IoU of an FCN head on the frozen feature map",
}

OTHER = "a probe of its own"


class Protocol(NamedTuple):
    """How a number was measured, and on which network."""

    name: str
    network: str

    @property
    def title(self) -> str:
        """lbfgs (online)"""
        return f"{self.name} ({self.network})"


@dataclass(frozen=True)
class Result:
    """A result with its settings taken apart into what makes its row and what makes its column."""

    shared: Settings
    variant: Settings  # empty for plain
    budget: float
    seed: int
    raw: Mapping[str, Any]  # all of its result.json

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.raw["path"])

    @property
    def is_live(self) -> bool:
        """Whether the prior looked at every view of phase 1."""
        return dict(self.variant).get(LIVE_KEY) == LIVE

    @property
    def finished(self) -> bool:
        return bool(self.raw["status"] == "finished")


@dataclass(frozen=True)
class Row:
    """Settings that plain and ReLA share, at one budget; `label` is what differs from other rows."""

    shared: Settings
    budget: float
    label: str

    @property
    def names(self) -> tuple[str, str, str]:
        """Dataset, learner and method."""
        flat = dict(self.shared)
        return flat.get("dataset", ""), flat.get("learner", ""), flat.get("method", "")


@dataclass(frozen=True)
class Column:
    """One way to a representation; `kind` is untrained, plain, prior, prior_alone or plain_star."""

    kind: str
    head: str
    settings: Settings = ()

    @property
    def name(self) -> str:
        """The head in one line."""
        return self.head.replace("\n", " ")

    @property
    def is_trained(self) -> bool:
        return self.kind in ("plain", "prior", "plain_star")


@dataclass(frozen=True)
class Score:
    """Top-1 over seeds; no deviation for a single one."""

    mean: float
    std: float | None
    seeds: tuple[int, ...]


# ---------------------------------------------------------------------------------------- rows, columns, cells


def results_of(found: Sequence[Mapping[str, Any]], names: Mapping[str, str] | None = None) -> list[Result]:
    """Results, ready to be compared; their priors are called as `prior_names` has it.

    Raises:
        ConfigError: `names` calls a prior that is not there, or two of them the same.
    """
    results = []
    for raw, prior in zip(found, prior_names(found, names or {}), strict=True):
        flat = flatten({k: v for k, v in raw["settings"].items() if k not in ("budget", "seed")})
        flat |= {group: part_name(raw, group) for group in ("dataset", "learner") if group in flat}
        if raw["prior"] != "none":
            flat["prior"] = prior
        variant = () if raw["prior"] == "none" else part_of(flat.items(), VARIANT)
        budget = round(float(raw["budget"]), 6)
        results.append(Result(part_of(flat.items(), VARIANT, inside=False), variant, budget, raw["seed"], raw))
    return results


def rows_of(results: Sequence[Result]) -> list[Row]:
    """One row for each budget of the settings that plain and ReLA share, in the order of the tables."""
    keys = differing({result.shared for result in results})
    rows = [
        Row(shared, budget, settings_text(shared, keys)) for shared, budget in {(r.shared, r.budget) for r in results}
    ]
    return sorted(rows, key=lambda row: (*row.names, row.budget, natural_order(row.shared, keys)))


def by_dataset(results: Iterable[Result]) -> list[list[Result]]:
    """The runs on each data set, in the order of their names: accuracies on two are not compared."""
    found: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        found[dict(result.shared).get("dataset", "")].append(result)
    return [found[name] for name in sorted(found)]


def rows_to_compare(results: Sequence[Result]) -> list[Row]:
    """All rows but those that hold nothing but the starred runs, which other rows show already."""
    needed = {(result.shared, result.budget) for result in results if result.variant or result.budget != 1}
    have_rows = {shared for shared, _ in needed}
    return [row for row in rows_of(results) if (row.shared, row.budget) in needed or row.shared not in have_rows]


def columns_of(results: Iterable[Result]) -> list[Column]:
    """Untrained, plain, each variant of each prior with the prior alone beside it, plain on everything."""
    variants = {result.variant for result in results if result.variant}
    keys = differing(variants)
    presets = {variant for variant in variants if is_preset(variant, keys)}
    own = differing(variants - presets)  # where only the preset differs, its name says so
    by_targets: dict[Settings, list[Settings]] = defaultdict(list)
    for variant in sorted(variants, key=lambda v: natural_order(v, keys)):
        by_targets[part_of(variant, TARGET_PARTS)].append(variant)
    columns = [Column("untrained", "untrained"), Column("plain", "plain")]
    for targets in sorted(by_targets, key=lambda t: _prior_order(dict(t)["prior"])):
        heads = [_preset_head(v, keys) if v in presets else _head(v, own) for v in by_targets[targets]]
        columns += [Column("prior", *pair) for pair in zip(heads, by_targets[targets], strict=True)]
        alone = _preset_head(targets, keys) if presets.issuperset(by_targets[targets]) else _head(targets, own)
        columns.append(Column("prior_alone", f"{alone}\nprior alone", targets))
    return [*columns, Column("plain_star", "plain*")]


def _prior_order(name: str) -> tuple[int, str]:
    return (PRIOR_ORDER.index(name) if name in PRIOR_ORDER else len(PRIOR_ORDER)), name


def _head(variant: Settings, keys: set[str], preset: str = "") -> str:
    settings = dict(variant)
    views = f"{settings[VIEWS_KEY]} views" if VIEWS_KEY in settings else ""
    live = LIVE if settings.get(LIVE_KEY) == LIVE else ""
    others = settings_text(variant, keys - {LIVE_KEY, VIEWS_KEY}, "\n")
    return "\n".join(filter(None, (settings["prior"], live, views, preset, others)))


def _preset_head(variant: Settings, keys: set[str]) -> str:
    return _head(variant, keys - PRESET_SETTINGS.keys(), PRESET)


def score(results: Iterable[Result], row: Row, column: Column, protocol: Protocol) -> Score | None:
    """What a cell shows."""
    values = by_seed(results, row, column, protocol)
    if no_seed_moves(column, values):
        values = dict([min(values.items())])  # one measurement, not three
    if not values:
        return None
    std = statistics.stdev(values.values()) if len(values) > 1 else None
    return Score(statistics.fmean(values.values()), std, tuple(sorted(values)))


def no_seed_moves(column: Column, values: Mapping[int, float]) -> bool:
    """Whether numbers by seed are one measurement, since the run's seed does not move it."""
    return column.kind == "prior_alone" and len(set(values.values())) == 1


def by_seed(results: Iterable[Result], row: Row, column: Column, protocol: Protocol) -> dict[int, float]:
    """Top-1 of a cell's runs. Baselines do not depend on the budget, so every run of the row's settings has them."""
    values: dict[int, float] = {}
    for result in results:
        if result.finished and result.shared == row.shared:
            value = _value(result, row.budget, column, protocol)
            if value is not None:
                values[result.seed] = value
    return values


def _value(result: Result, budget: float, column: Column, protocol: Protocol) -> float | None:
    """What one run says about a cell, None if nothing."""
    if column.kind in ("untrained", "prior_alone"):
        if column.kind == "prior_alone" and part_of(result.variant, TARGET_PARTS) != column.settings:
            return None
        measured = measured_by((result.raw.get("baselines") or {}).get(column.kind))
        alike = (value for known, value in measured.items() if known.name == protocol.name)
        return measured.get(protocol, next(alike, None))  # a baseline has one network only
    budget = 1.0 if column.kind == "plain_star" else budget
    if result.budget != budget or result.variant != column.settings:
        return None
    return measured_by(result.raw.get("probe")).get(protocol)


def measured_by(probe: Any) -> dict[Protocol, float]:
    """The finite top-1 or mean IoU values of a `probe` mapping, {"lbfgs": ..., "lbfgs@target": ...}."""
    measured = {}
    for key, entry in (probe or {}).items():
        name, _, suffix = key.partition("@")
        top1 = entry.get("top1", entry.get("miou")) if isinstance(entry, Mapping) else None
        if isinstance(top1, int | float) and math.isfinite(top1):
            measured[Protocol(name, entry.get("network") or suffix or "online")] = float(top1)
    return measured


def measure_of(protocol: Protocol) -> str:
    """What a protocol's numbers are: top-1, or the mean IoU."""
    return "mIoU" if protocol.name in SEGMENTED else "top-1"


def protocols_of(results: Iterable[Result], name: str = "all", network: str = "all") -> list[Protocol]:
    """The protocols that the runs were measured by, restricted to those asked for.

    Raises:
        ConfigError: for a protocol that nobody knows.
        RelaError: for one that no run was measured by.
    """
    present = {protocol for result in results if result.finished for protocol in measured_by(result.raw.get("probe"))}
    known = [*PROTOCOLS, *sorted({p.name for p in present} - PROTOCOLS.keys())]
    if name not in ("all", *known):
        raise ConfigError(f"--protocol={name} must be one of {', '.join(known)}, all{did_you_mean(name, known)}")
    chosen = [p for p in present if name in ("all", p.name) and network in ("all", p.network)]
    if not chosen and (name, network) != ("all", "all"):
        there = ", ".join(protocol.title for protocol in sorted(present)) or "nothing"
        raise RelaError(f"no run here has --protocol={name} --network={network}; measured: {there}")
    return sorted(chosen, key=lambda p: (known.index(p.name), p.network))


def protocols_legend(protocols: Iterable[Protocol]) -> list[tuple[str, str]]:
    """How each of them measures, and on which network."""
    names, networks = (dict.fromkeys(part) for part in zip(*protocols, strict=True))
    told = {**PROTOCOLS, **SEGMENTED}
    how = [(name, FINETUNED if name.startswith("finetune-") else told.get(name, OTHER)) for name in names]
    return how + [(name, NETWORKS.get(name, "a network of the method's")) for name in networks]


def saw_labels(results: Iterable[Result], row: Row, column: Column) -> bool:
    """Whether the prior behind a cell was trained with the labels that the cell is judged by."""
    return any(result.raw.get("prior_saw_labels") for result in results_behind(results, row, column))


def label_mark(results: Sequence[Result], row: Row, column: Column) -> str:
    """What stands behind a number whose prior has seen the labels, or of which nobody says; mostly nothing."""
    if saw_labels(results, row, column):
        return SEEN
    return UNKNOWN * any(is_unknown(result.raw) for result in results_behind(results, row, column))


def results_behind(results: Iterable[Result], row: Row, column: Column) -> list[Result]:
    """The runs of a cell's prior, whatever their budget; none where a cell has no prior."""
    if column.kind not in ("prior", "prior_alone"):
        return []
    return [
        result
        for result in results
        if result.shared == row.shared
        and column.settings == (result.variant if column.kind == "prior" else part_of(result.variant, TARGET_PARTS))
    ]


def best_and_above(
    scores: Sequence[Score | None], columns: Sequence[Column], seen: Sequence[bool]
) -> list[tuple[bool, bool]]:
    """For each cell of a row: is it the best one trained at this budget, if there are several; is it above plain*.

    Neither with labels seen.
    """
    fair = (None if saw else value for value, saw in zip(scores, seen, strict=True))
    means = [-math.inf if value is None else value.mean for value in fair]
    here = [column.is_trained and column.kind != "plain_star" for column in columns]  # that one has its own budget
    trained = [mean if is_here else -math.inf for mean, is_here in zip(means, here, strict=True)]
    stars = [m for m, value, c in zip(means, scores, columns, strict=True) if c.kind == "plain_star" and value]
    reference = stars[0] if stars else math.inf
    several = sum(mean > -math.inf for mean in trained) > 1
    return [(several and mean == max(trained), m > reference) for mean, m in zip(trained, means, strict=True)]


def seeds_of(scores: Iterable[tuple[Score | None, Column]]) -> set[int]:
    """Over how many seeds the scores are means; a prior alone that no seed moves, one measurement, does not count."""
    counted = (value for value, column in scores if value and (value.std is not None or column.kind != "prior_alone"))
    return {len(value.seeds) for value in counted}


def without_constants(
    heads: Sequence[str], labels: Sequence[tuple[str, ...]], keep: int
) -> tuple[list[str], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Labels that are the same in every row move to the title; the last `keep` stay where they are."""
    fixed = len(heads) - keep
    varies = [i >= fixed or len({row[i] for row in labels}) > 1 for i in range(len(heads))]
    title = [labels[0][i] for i in range(fixed) if not varies[i] and labels[0][i]]
    kept = [i for i, does in enumerate(varies) if does]
    return title, tuple(heads[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in labels)


LABELS = ("protocol", "network", *NAMED_PARTS, "settings", "budget")  # what tells the rows of a table of numbers apart


def row_labels(
    lines: Sequence[tuple[Row, Protocol]], what: str, last: Sequence[str] = (), more: Sequence[tuple[str, ...]] = ()
) -> tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Title, heads and labels of a table of `what`; `last` and `more` are label columns of its own."""
    names, networks = ({protocol[i] for _, protocol in lines} for i in (0, 1))
    every_label = []
    for i, (row, protocol) in enumerate(lines):
        name, network = protocol.name * (len(names) > 1), protocol.network * (len(networks) > 1)
        own = more[i] if more else ()
        every_label.append((name, network, *row.names, row.label, f"{row.budget:g}", *own))
    title, heads, labels = without_constants((*LABELS, *last), every_label, keep=1 + len(last))
    what += f" by {next(iter(names))}" * (len(names) == 1)
    what += f" ({next(iter(networks))})" * (len(networks) == 1)
    return " · ".join([*title, what]), heads, labels


def results_in(results: Iterable[Result], row: Row, column: Column) -> list[Result]:
    """The runs behind a plain or a prior's cell."""
    return [r for r in results if r.shared == row.shared and r.budget == row.budget and r.variant == column.settings]
