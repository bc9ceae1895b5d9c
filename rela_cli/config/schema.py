"""The schema: one frozen dataclass a config group, units in the names, ranges in the types.

Hydra composes a tree; `from_tree` turns it into a `Config` once, at the door, and reports every problem at
once. Nothing below ever sees the tree, nobody writes to a `Config`, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from rela_cli.config.identity import identity_of
from rela_cli.config.ranges import (
    Count,
    NonNegative,
    OneOf,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
)
from rela_cli.config.runtime import CheckpointSettings, Logger, Paths, Runtime

PACKAGE = Path(__file__).parent.parent  # the package

CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # a wheel, else a checkout

HOMES = {  # where the classes of each group are; a config can call nothing else of ours
    "dataset": "rela_cli.data.",
    "prior": "rela_cli.priors.",
    "transport": "rela_cli.transports.",
    "switch": "rela_cli.switch.",
    "learner": "rela_cli.learners.",
    "method": "rela_cli.methods.",
    "optimizer": "rela_cli.optim.",
}

PART_GROUPS = tuple(HOMES)  # groups whose yaml names a class

GROUPS = (*PART_GROUPS, "matching", "probe", "runtime", "logger", "experiment", "sweep")


# ------------------------------------------------------------------------------------------- names of choices

NO_MAP = {  # priors of ours that give no feature map, and why
    "rela_cli.priors.onnx.Onnx": "a program gives what it was exported to give, one vector an image",
    "rela_cli.priors.exported.Exported": "a program gives what it was exported to give, one vector an image",
    "rela_cli.priors.ensemble.Ensemble": "the maps of its members may have other numbers of cells",
    "rela_cli.priors.efficient.OfDataset": "an efficient dataset brings one target an image",
}
EFFICIENT = "rela_cli.priors.efficient.OfDataset"  # the prior whose targets come with dataset=efficient
ENSEMBLE = "rela_cli.priors.ensemble.Ensemble"  # the prior that is several
NO_MEMBERS = {  # priors that an ensemble cannot have, and why
    ENSEMBLE: "an ensemble has no ensembles as members; name the priors of both in one list",
    EFFICIENT: "an efficient dataset brings targets and no features; name the prior itself",
    "rela_cli.priors.none.NoPrior": "prior=none gives no features; leave it out",
}

PRETRAINED, RANDOM = "pretrained", "random"  # what prior.weights may say instead of a path

NETWORKS = {"online": "the network that was trained", "target": "the method's slow average of it"}

PROTOCOLS = {  # how each measures, in the order of the tables
    "rela": "linear, by Adam, as in the paper",
    "lbfgs": "linear, by L-BFGS on standardised features",
    "knn": "nearest neighbours by cosine",
    "sgd_grid": "linear, by SGD, best rate on held-out train",
    "few_shot": "logistic regression on a few labels a class",
}

WHOLE = ("finetune", "segment")  # protocols that need more than features: of finished runs, by `rela probe RUN`

FINETUNERS = ("adamw", "sgd")

STEMS = ("imagenet", "cifar")

INTERPOLATIONS = ("bicubic", "bilinear")

CACHED, LIVE = "cached", "live"  # what matching.targets may say

KEEP, FRESH = "keep", "fresh"  # what switch.moments may say

POOLS = ("cls", "mean", "none")

CHANNELS = ("rgb", "bgr")

LEARNER, TWICE, ALL = "learner", "twice", "all"  # what transport.dims may say instead of a number


# --------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Card:
    """What a yaml says about its part for people and tables to know; it changes no bytes, so no fingerprint has it.

    features: the width D that `tests/test_every_part.py` measures; parameters in millions, of the part that is used.
    source: where weights are fetched from, hf://OWNER/REPOSITORY/FILE or https://...; sha256 of that file, or its
    first digits; megabytes: its size. labels_seen: the label sets that training used (`data/labels.py` names them);
    None: nobody says, () for none. pretrained_labels_seen: the same of the weights that `weights=pretrained` fetches.
    labels_unknown: labels_seen is not all, as of an ensemble with one member of which nobody says.
    """

    features: Count | None = None
    parameters: Positive | None = None
    source: str | None = None
    sha256: str | None = None
    megabytes: Positive | None = None
    licence: str | None = None
    trained_on: str | None = None
    labels_seen: tuple[str, ...] | None = None
    pretrained_labels_seen: tuple[str, ...] | None = None
    labels_unknown: bool = False


OWN_KEYS = ("name", "_target_", "card")  # of every part's yaml; all others are keywords of its class


def targets_in(value: Any) -> list[str]:
    """Every `_target_` inside some options."""
    if isinstance(value, Mapping):
        own = [str(value["_target_"])] if "_target_" in value else []
        return own + [target for inner in value.values() for target in targets_in(inner)]
    return [target for inner in value for target in targets_in(inner)] if isinstance(value, list | tuple) else []


@dataclass(frozen=True)
class Part:
    """One choice of a config group: a class of ours (or of a package the user allowed) and its keywords."""

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    card: Card = Card()

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Part:
        """From a yaml's own form, unchecked."""
        return cls(tree["name"], tree["_target_"], {k: v for k, v in tree.items() if k not in OWN_KEYS})

    @property
    def tree(self) -> dict[str, Any]:
        """The part as a yaml has it, and as `from_tree` of the whole config takes it."""
        card = {key: value for key, value in vars(self.card).items() if value is not None}
        return {"name": self.name, "_target_": self.target, **self.options, **({"card": card} if card else {})}

    @property
    def members(self) -> tuple[Part, ...]:
        """The priors that an ensemble is made of; none of any other part."""
        return tuple(map(member_of, self.options["members"])) if self.target == ENSEMBLE else ()

    @property
    def singles(self) -> tuple[Part, ...]:
        """The priors that look at images: the members of an ensemble, else the part itself."""
        return self.members or (self,)

    def each(self, change: Callable[[Part], Part]) -> Part:
        """The part changed, or of an ensemble each of its members."""
        if self.target != ENSEMBLE:
            return change(self)
        trees = [change(member).tree for member in self.members]
        return replace(self, options={**self.options, "members": trees})

    @property
    def identity(self) -> dict[str, Any]:
        """What a fingerprint has to cover: name, class and options. A class of ours may move to another module."""
        return {"name": self.name, **identity_of({"_target_": self.target, **self.options})}

    def foreign(self, packages: Sequence[str]) -> list[str]:
        """Classes that the part names, at any depth, from packages other than these."""
        return [
            target for target in (self.target, *targets_in(self.options)) if target.partition(".")[0] not in packages
        ]


def member_of(tree: Mapping[str, Any]) -> Part:
    """A member of an ensemble, whose tree was checked with the config."""
    told: dict[str, Any] = tree.get("card") or {}
    card: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return replace(Part.from_tree(tree), card=Card(**card))


@dataclass(frozen=True)
class View:
    """How one view is drawn from an image; every number is per sample. Names and order follow torchvision."""

    crop_scale: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    flip_p: Share = 0.5
    jitter: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Range(0, 0.5)]] = (0.8, 0.8, 0.8, 0.2)
    jitter_p: Share = 0.8
    gray_p: Share = 0.2
    blur_p: Share = 0.0
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    solarize_p: Share = 0.0
    size_scale: PositiveShare = 1.0  # pixels a side, as a share of the image's: below 1 for local crops


@dataclass(frozen=True)
class MatchingSettings:
    """Phase 1: the learner's representation, through a linear transfer layer, is pulled to its target."""

    name: str
    transfer: Annotated[str, OneOf(("trained", "frozen"))]
    view: View
    targets: Annotated[str, OneOf((CACHED, LIVE))] = CACHED
    token_weight: PositiveShare = 0.5


@dataclass(frozen=True)
class Extract:
    """What the prior looks at: each clean image; with `views` above 1, so many light views of each train image, too.

    With `tokens` its feature map of train images, or of their light views, is kept: `token_grid` cells a side at most.
    """

    views: Annotated[int, Range(1, 1000)] = 1
    tokens: bool = False
    token_grid: Annotated[int, Range(2, 64)] = 7


@dataclass(frozen=True)
class Probe:
    """How a frozen backbone is judged. Every number carries the protocol's name and the network probed."""

    protocols: tuple[Annotated[str, OneOf((*PROTOCOLS, *WHOLE))], ...]
    network: Annotated[str, OneOf((*NETWORKS,))]
    baselines: bool
    in_training: bool | None
    rela_epochs: Count
    rela_lr: Positive
    rela_batch_size: Count
    knn_k: Count
    knn_temperature: Positive
    lbfgs_penalty: Positive | None
    lbfgs_tolerance: Positive | None
    sgd_grid_epochs: Count
    sgd_grid_batch_size: Count
    few_shot_k: Count
    few_shot_draws: Count
    label_share: PositiveShare
    finetune_steps: Count
    finetune_batch_size: Annotated[int, Range(2)]
    finetune_optimizer: Annotated[str, OneOf(FINETUNERS)]
    finetune_lr: Positive | None
    finetune_weight_decay: NonNegative | None
    finetune_layer_decay: PositiveShare
    finetune_min_crop: PositiveShare
    segment_steps: Count
    segment_batch_size: Count
    segment_lr: Positive | None


@dataclass(frozen=True)
class Config:
    """One run, validated. The run's `seed` moves init, subset, order and augmentation, and nothing else."""

    dataset: Part
    prior: Part
    transport: Part
    matching: MatchingSettings
    switch: Part
    learner: Part
    method: Part
    optimizer: Part
    probe: Probe
    runtime: Runtime
    logger: Logger
    paths: Paths
    checkpoint: CheckpointSettings
    budget: PositiveShare
    epochs: Count
    batch_size: Annotated[int, Range(2)]
    accumulate: Count
    seed: Seed
    allow: tuple[str, ...]
    evaluate: tuple[str, ...]
    resume: Annotated[str, OneOf(("auto", "force", "never"))]
    on_collapse: Annotated[str, OneOf(("warn", "stop"))]
    extract: Extract = Extract()

    @property
    def outputs(self) -> Path:
        """The folder of runs and caches."""
        return Path(self.paths.outputs).expanduser()

    @property
    def is_plain(self) -> bool:
        """True for the method by itself: no prior, so no targets, no matching and no switch."""
        return self.prior.name == "none"

    @property
    def is_live(self) -> bool:
        """True where the prior looks at every view of phase 1 itself."""
        return self.matching.targets == LIVE and not self.is_plain

    @property
    def has_views(self) -> bool:
        """Whether phase 1 matches light views to what the prior made of these very views."""
        return self.extract.views > 1 and not self.is_plain

    @property
    def has_tokens(self) -> bool:
        """Whether phase 1 also matches the learner's feature map, cell by cell, to the prior's."""
        return self.extract.tokens and not self.is_plain

    @property
    def extracts(self) -> bool:
        """Whether a prior has to look at images: there is one, and an efficient dataset does not bring its targets."""
        return not self.is_plain and self.prior.target != EFFICIENT
