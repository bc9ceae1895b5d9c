"""`rela rank`: which free model should I take? Priors side by side on a sample of the data, before any training.

Each prior goes through stages extract and transport as in a run, and what is scored are the very targets that the
learner would be matched to. Where there are labels the order is by the `lbfgs` probe of those targets, elsewhere by
LABEL_FREE; docs/experiments.md says how well either foretells the order of the trained learners.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rela_cli.commands.rank.request import Candidate, command, configs_for, read
from rela_cli.commands.rank.request import parser as parser
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Config
from rela_cli.errors import ConfigError
from rela_cli.pipeline.judging import features_of_views
from rela_cli.pipeline.pipeline import Pipeline
from rela_cli.pipeline.run import Run
from rela_cli.report.grids import formats
from rela_cli.report.grids.cells import MISSING, SEEN, UNKNOWN, Cell, Grid, or_missing
from rela_cli.store.notices import warn
from rela_cli.terminal import as_si
from rela_cli.weights import locate, seen

NEIGHBOURS = 10  # that two priors may agree about
LABEL_FREE = "stability"  # what orders priors where there are no labels


@dataclass
class Scores:
    """What is known of one prior; None where it cannot be known."""

    prior: str
    saw_labels: bool
    labels_unknown: bool  # whether nobody says which labels it has seen
    features: int
    targets: int
    explained: float | None  # share of the features' variance in the targets' components
    effective_rank: float
    stability: float  # mean cosine between the targets of an image and those of a light view of it
    lbfgs: float | None
    knn: float | None
    milliseconds: float  # an image, on this machine
    flops: float  # an image
    neighbours: dict[str, float] = field(default_factory=dict)  # share of neighbours in common with each other prior
    cka: dict[str, float] = field(default_factory=dict)

    @property
    def agreement(self) -> float | None:
        """Mean share of neighbours in common with the other priors."""
        return sum(self.neighbours.values()) / len(self.neighbours) if self.neighbours else None


def main(argv: list[str]) -> int:
    """Score the priors named and print them in order.

    Raises:
        ConfigError: no priors named, or a command line that is wrong. MissingError: weights that are not there.
    """
    request = read(argv)
    configs = configs_for(request)
    if configs[0].has_views or configs[0].has_tokens:
        warn("rela rank judges the targets of clean images: extract.views and extract.tokens do not change the order")
    for config in configs:
        seen.check(config.prior)
        for prior in config.prior.singles:
            locate.locate(prior)  # all that is missing is said before anything is computed
    runs = [made_targets(config) for config in configs]
    found = [scores_of(entry, run) for entry, run in zip(request.entries, runs, strict=True)]
    add_agreement(found, runs)
    best_first = ordered(found)
    show(best_first, runs[0], request.form)
    if request.form == "rich":
        print(textwrap.fill(ranking_sentence(best_first), 80))
        winner = request.entries[found.index(best_first[0])]
        print(f"next  {command(request, winner)}")
    return 0


# ----------------------------------------------------------------------------------------------------------- scores


def made_targets(config: Config) -> Run:
    """The prior's features and targets of the sample, from the cache or made now."""
    run = Run(config)
    if config.is_plain:
        raise ConfigError("prior=none has no targets to score")
    Pipeline(run, "rela rank").make_targets("transport")
    return run


def scores_of(entry: Candidate, run: Run) -> Scores:
    """Everything that one prior can be scored by alone."""
    features, targets = run.features.manifest or {}, run.targets.manifest or {}
    width = min(Pipeline(run, "rela rank").learner_width(), targets["dim"]) if targets["ordered"] else targets["dim"]
    explained, rank = variance_and_rank(run, width)
    by_labels = label_scores(run, width)
    labels, images = seen.label_facts(run.config.prior, run.dataset), run.lengths.train_samples
    name = entry.name
    if not (entry.is_named or entry.members):
        name = locate.shown_name(replace(run.config.prior, name=run.called["prior"]))  # as tables call it
    return Scores(
        prior=name,
        saw_labels=labels["prior_saw_labels"],
        labels_unknown=labels["labels_unknown"],
        features=features["feature_dim"],
        targets=width,
        explained=explained,
        effective_rank=rank,
        stability=stability(run, width),
        lbfgs=by_labels.get("lbfgs"),
        knn=by_labels.get("knn"),
        milliseconds=1000 * features["seconds"] / images,
        flops=features["flops"] / images,
    )


def variance_and_rank(run: Run, width: int) -> tuple[float | None, float]:
    """Share of the variance in the first `width` components, and the effective rank of the features."""
    from safetensors.torch import load_file

    from rela_cli.evaluation.measures import effective_rank, rank_of

    values = load_file(run.targets.folder / "map.safetensors").get("eigenvalues")
    if values is None:  # a transport without components
        return None, effective_rank(train_features(run))
    return float(values[:width].sum() / values.sum()), rank_of(values.sqrt())


def stability(run: Run, width: int) -> float:
    """Mean cosine between an image's targets and those of one of its light views.

    Matching pulls views to the image's own target, so this is what the prior itself would reach at it; of the
    label-free scores it is the one that orders priors as their trained learners come out (docs/experiments.md).
    """
    from torch.nn import functional as F

    mapping, seen = fitted_map(run), features_of_views(run, 1)[:, 0]
    features = (train_features(run)[: len(seen)], seen)
    clean, of_views = (mapping(one.half())[:, :width].float() for one in features)
    return float(F.cosine_similarity(clean, of_views, dim=1).mean())


def fitted_map(run: Run) -> Any:
    """The transport of a run: fitted to its features, or of an ensemble as it was fitted to those of each member."""
    from rela_cli.stages.transport import row_blocks
    from rela_cli.transports.base import taken_up

    if run.config.prior.members:
        instead = ("an ensemble in rela rank", "its members one by one")
        return taken_up(run.config.transport, run.targets.folder / "map.safetensors", *instead)
    mapping = instantiate(run.config.transport)
    mapping.fit(row_blocks(train_features(run)))
    return mapping


def label_scores(run: Run, width: int) -> dict[str, float]:
    """Probes of the targets, as the `prior alone` column of a table has them; nothing without labels."""
    if not run.can_probe:
        return {}
    from rela_cli.stages.probe import prior_task, probe

    task = prior_task(run.targets, width, run.images, run.config.runtime)[0]
    return {name: probe(task, name, run.config.probe)["top1"] for name in ("lbfgs", "knn")}


def add_agreement(found: Sequence[Scores], runs: Sequence[Run]) -> None:
    """What each pair of priors has in common: neighbours and linear CKA of their features."""
    from rela_cli.evaluation.measures import linear_cka, mutual_neighbours

    features = [train_features(run) for run in runs]
    for i, one in enumerate(found):
        for j, other in enumerate(found[:i]):
            pair = features[i], features[j]
            one.neighbours[other.prior] = other.neighbours[one.prior] = mutual_neighbours(*pair, NEIGHBOURS)
            one.cka[other.prior] = other.cka[one.prior] = linear_cka(*pair)


def train_features(run: Run) -> Any:
    """(n, D_p) float32."""
    from rela_cli.stages.ensemble import read_features

    return read_features(run.features, "train")


def ordered(found: Sequence[Scores]) -> list[Scores]:
    """Best first; a prior that has seen these labels comes last, since its scores say nothing about others."""
    by = "lbfgs" if all(score.lbfgs is not None for score in found) else LABEL_FREE
    return sorted(found, key=lambda score: (score.saw_labels, -getattr(score, by)))


# ----------------------------------------------------------------------------------------------------------- screen

RANK_COLUMNS: dict[str, Callable[[Scores], Cell]] = {
    "lbfgs": lambda score: percent_cell(score.lbfgs),
    "knn": lambda score: percent_cell(score.knn),
    "stable": lambda score: percent_cell(score.stability),
    "explained\nvariance": lambda score: percent_cell(score.explained),
    "effective\nrank": lambda score: Cell(f"{score.effective_rank:.1f}"),
    "agrees": lambda score: percent_cell(score.agreement),
    "features": lambda score: Cell(str(score.features)),
    "targets": lambda score: Cell(str(score.targets)),
    "ms an\nimage": lambda score: Cell(f"{score.milliseconds:.3g}"),
    "FLOP an\nimage": lambda score: Cell(or_missing(score.flops, as_si)),
}
ON_SCREEN = ("lbfgs", "knn", "stable", "effective\nrank", "features", "ms an\nimage")  # within 80 columns
LEGEND = (
    ("lbfgs, knn", "top-1 % of the targets themselves, the `prior alone` of a table"),
    ("stable", "cosine between the targets of an image and those of a light view of it, %"),
    ("explained", "variance of the features that the learner's components carry, %"),
    ("agrees", f"mean share of {NEIGHBOURS} nearest neighbours in common with the other priors, %"),
    (MISSING, "not known"),
)
SEEN_WORDS = (SEEN, "trained with the labels of this very dataset: not comparable, so it stands last")
UNKNOWN_WORDS = (UNKNOWN, "nobody says which labels it was trained with: NAME.card.labels_seen=[cifar10], [] for none")


def show(found: Sequence[Scores], run: Run, form: str) -> None:
    """Print the order, and who agrees with whom."""
    if form in ("csv", "json"):
        formats.write_records([score_record(score) for score in found], form, [])
    elif form == "rich":
        formats.print_grids([ranking(found, run, ON_SCREEN)], form, [])
    else:
        grids = [ranking(found, run, tuple(RANK_COLUMNS)), *([agreement(found)] if len(found) > 1 else [])]
        formats.print_grids(grids, form, [])


def ranking_sentence(found: Sequence[Scores]) -> str:
    """What the order says in one sentence, and what it does not say."""
    best, by = found[0], "lbfgs" if found[0].lbfgs is not None else LABEL_FREE
    if best.saw_labels:
        return "Each of these priors has seen the labels of this dataset, so none can be told to be the best."
    points = [f"{100 * getattr(score, by):.1f}" for score in found]
    level = [s.prior for s, point in zip(found, points, strict=True) if point == points[0] and not s.saw_labels]
    second = f", before {found[1].prior} with {points[1]}" if len(found) > 1 and not found[1].saw_labels else ""
    lead = f"{best.prior} is ahead by {by}: {points[0]}{second}"
    if len(level) > 1:
        lead = f"{', '.join(level[:-1])} and {level[-1]} are level by {by}: {points[0]}"
    return f"{lead}. The strongest prior does not always give the best learner: train with the first two."


def score_record(score: Scores) -> dict[str, Any]:
    """One line of CSV or JSON."""
    single = {key: value for key, value in vars(score).items() if not isinstance(value, Mapping)}
    pairs = {f"{kind}:{name}": v for kind in ("neighbours", "cka") for name, v in getattr(score, kind).items()}
    return {**single, "agreement": score.agreement, **pairs}


def ranking(found: Sequence[Scores], run: Run, heads: tuple[str, ...]) -> Grid:
    """The table of scores, best first, with some of the columns."""
    by = "lbfgs" if found[0].lbfgs is not None else LABEL_FREE
    learner, images = run.called["learner"], f"{run.called['dataset']}, {run.lengths.train_samples} train images"
    title = f"{images} · targets for {learner} · ordered by {by.replace('_', ' ')}"
    labels = tuple((str(i + 1), score.prior + mark(score)) for i, score in enumerate(found))
    marks = {mark(score) for score in found}
    legend = tuple(line for line in LEGEND if any(line[0].split(",")[0] in head for head in heads))
    legend += tuple(line for line in (SEEN_WORDS, UNKNOWN_WORDS) if line[0] in marks)
    rows = tuple(tuple(RANK_COLUMNS[head](score) for head in heads) for score in found)
    return Grid(title, ("", "prior"), heads, labels, rows, legend)


def mark(score: Scores) -> str:
    """What stands behind the name of a prior whose scores by labels may not be comparable."""
    judged = score.lbfgs is not None
    return SEEN * score.saw_labels or UNKNOWN * (judged and score.labels_unknown)


def agreement(found: Sequence[Scores]) -> Grid:
    """Neighbours in common, and linear CKA behind the stroke."""
    names = tuple(score.prior for score in found)
    lines = tuple(tuple(shared_cell(score, name) for name in names) for score in found)
    legend = (("a / b", f"{NEIGHBOURS} nearest neighbours in common, % / linear CKA of the features, %"),)
    return Grid("agreement between priors", ("prior",), names, tuple((name,) for name in names), lines, legend)


def shared_cell(score: Scores, name: str) -> Cell:
    """What a prior has in common with another; nothing with itself."""
    if name == score.prior:
        return Cell()
    return Cell(f"{100 * score.neighbours[name]:.0f} / {100 * score.cka[name]:.0f}")


def percent_cell(value: float | None) -> Cell:
    """One digit behind the point, or a dash."""
    return Cell() if value is None else Cell(f"{100 * value:.1f}")
