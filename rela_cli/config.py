"""The schema: one frozen dataclass a config group, units in the names, ranges in the types.

Hydra composes a tree; `from_tree` turns it into a `Config` once, at the door, and reports every problem at
once. Nothing below ever sees the tree, nobody writes to a `Config`, and nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rela_cli import ranks
from rela_cli.errors import ConfigError, nearest

HERE = Path(__file__).parent
CONF_DIR = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # a wheel, else a checkout
PARTS = ("dataset", "prior", "transport", "switch", "learner", "method", "optimizer")  # groups whose yaml names a class
HOMES = {  # where the classes of each group are; a config can call nothing else of ours
    "dataset": "rela_cli.data.",
    "prior": "rela_cli.priors.",
    "transport": "rela_cli.transports.",
    "switch": "rela_cli.switch.",
    "learner": "rela_cli.learners.",
    "method": "rela_cli.methods.",
    "optimizer": "rela_cli.optim.",
}
GROUPS = (*PARTS, "matching", "probe", "runtime", "logger", "experiment", "sweep")


# ---------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both allowed; `above` leaves `low` itself out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def complaint(self, value: float) -> str | None:
        if math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high:
            return None
        low = f"{'above' if self.above else 'at least'} {self.low:.10g}" if self.low > -math.inf else ""
        high = f"at most {self.high:.10g}" if self.high < math.inf else ""
        return "must be " + (" and ".join(filter(None, (low, high))) or "finite")


@dataclass(frozen=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]

    def complaint(self, value: str) -> str | None:
        if value in self.names:
            return None
        return f"must be one of {', '.join(self.names)}{nearest(value, self.names)}"


PRETRAINED, RANDOM = "pretrained", "random"  # what prior.weights may say instead of a path
NETWORKS = ("online", "target")
PROTOCOLS = ("rela", "lbfgs", "knn", "sgd_grid", "few_shot")
STEMS = ("imagenet", "cifar")
INTERPOLATIONS = ("bicubic", "bilinear")

POOLS = ("cls", "mean", "none")
CHANNELS = ("rgb", "bgr")


@dataclass(frozen=True)
class GridOrOneOf:
    """A whole number for the prior `patches`, a name for networks: the yaml of the prior says which it is."""

    names: tuple[str, ...]

    def complaint(self, value: Any) -> str | None:
        is_grid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return (
            None
            if is_grid or value in self.names
            else f"must be one of {', '.join(self.names)} (of patches: 1, 2, ...)"
        )


Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]


# --------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Card:
    """What a yaml says about its part for people and tables to know; it changes no bytes, so no fingerprint has it.

    features: the width D that `tests/test_every_part.py` measures; parameters in millions, of the part that is used.
    source: where weights are fetched from, hf://OWNER/REPOSITORY/FILE or https://...; sha256 of that file, or its
    first digits; megabytes: its size. labels_seen: the label sets that training used (`data/labels.py` names them);
    None: nobody says, () for none. pretrained_labels_seen: the same of the weights that `weights=pretrained` fetches.
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


OWN_KEYS = ("name", "_target_", "card")  # of every part's yaml; all others are keywords of its class


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
    def identity(self) -> dict[str, Any]:
        """What a fingerprint has to cover."""
        options = {k: _without_cards(v) for k, v in self.options.items()}
        return {"name": self.name, "target": self.target, **options}

    def foreign(self, packages: Sequence[str]) -> list[str]:
        """Classes that the part names, at any depth, from packages other than these."""
        return [target for target in (self.target, *_targets(self.options)) if target.partition(".")[0] not in packages]


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
class Matching:
    """Phase 1: the learner's representation, through a linear transfer layer, is pulled to its target."""

    name: str
    transfer: Annotated[str, OneOf(("trained", "frozen"))]
    view: View


@dataclass(frozen=True)
class Probe:
    """How a frozen backbone is judged. Every number carries the protocol's name and the network probed."""

    protocols: tuple[Annotated[str, OneOf(PROTOCOLS)], ...]
    network: Annotated[str, OneOf(NETWORKS)]
    baselines: bool
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


@dataclass(frozen=True)
class Runtime:
    """Where and how it runs; no part of a run's identity but `read_every_steps` and 16 bits of `extract_precision`."""

    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))]
    threads: Count | None
    block_size: Count
    log_every_epochs: Count
    eval_every_epochs: Annotated[int, Range(0)]
    read_every_steps: Count | None
    devices: Count
    precision: Annotated[str, OneOf(("auto", "fp32", "bf16"))]
    extract_precision: Annotated[str, OneOf(("fp32", "fp16", "bf16"))]
    compile: Annotated[str, OneOf(("off", "default", "reduce-overhead"))]
    deterministic: bool
    cells_at_once: Count | None
    cells_per_gpu: Count
    dry_run: bool


@dataclass(frozen=True)
class Logger:
    """Where metrics go besides metrics.jsonl."""

    name: Annotated[str, OneOf(("none", "wandb"))]
    project: str
    entity: str | None
    mode: Annotated[str, OneOf(("online", "offline"))]


@dataclass(frozen=True)
class Paths:
    """Folders; relative ones start at the working directory."""

    outputs: str
    run: str | None


@dataclass(frozen=True)
class Checkpoint:
    """How often the state of training is written down, and whether the last one outlives the training."""

    every_seconds: NonNegative
    keep: bool


@dataclass(frozen=True)
class Config:
    """One run, validated. The run's `seed` moves init, subset, order and augmentation, and nothing else."""

    dataset: Part
    prior: Part
    transport: Part
    matching: Matching
    switch: Part
    learner: Part
    method: Part
    optimizer: Part
    probe: Probe
    runtime: Runtime
    logger: Logger
    paths: Paths
    checkpoint: Checkpoint
    budget: PositiveShare
    epochs: Count
    batch_size: Annotated[int, Range(2)]
    accumulate: Count
    seed: Seed
    allow: tuple[str, ...]
    resume: Annotated[str, OneOf(("auto", "force", "never"))]
    on_collapse: Annotated[str, OneOf(("warn", "stop"))]

    @property
    def is_plain(self) -> bool:
        """True for the method by itself: no prior, so no targets, no matching and no switch."""
        return self.prior.name == "none"


# ------------------------------------------------------------------- what the keys of our own parts may hold


@dataclass(frozen=True)
class DatasetOptions:
    root: str | None
    download: bool
    limit: Count | None
    test_limit: Count | None
    image_size: Annotated[int, Range(4)] | None
    decode_size: Annotated[int, Range(4)] | None
    on_disk: bool | None
    unlabelled: bool
    unpack: bool
    class_list: str | None
    dataset: str
    hub: str | None
    on_error: Annotated[str, OneOf(("raise", "skip"))]
    max_errors: Annotated[int, Range(0)]
    image_column: str
    label_column: str
    seed: Seed
    n: Count
    n_test: Count
    size: Annotated[int, Range(4)]
    classes: Annotated[int, Range(2)]
    flip: bool


@dataclass(frozen=True)
class PriorOptions:
    seed: Seed
    width: Count
    model: str
    tag: str
    weights: str
    trust: bool
    prefix: str | None
    ignore: tuple[str, ...]
    quick_gelu: bool | None
    stem: Annotated[str, OneOf(STEMS)]
    image_size: Annotated[int, Range(4)] | None
    crop: PositiveShare | None
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] | None
    mean: tuple[float, float, float] | None
    std: tuple[Positive, Positive, Positive] | None
    run: str
    network: Annotated[str, OneOf(NETWORKS)]
    patches: Count
    patch_size: Annotated[int, Range(2)]
    pool: Annotated[object, GridOrOneOf(POOLS)]
    channels: Annotated[str, OneOf(CHANNELS)]
    output: str | None


@dataclass(frozen=True)
class TransportOptions:
    max_dim: Count
    seed: Seed


@dataclass(frozen=True)
class SwitchOptions:
    constants: Annotated[str, OneOf(("reference", "share"))]
    threshold: PositiveShare
    at: Share


@dataclass(frozen=True)
class LearnerOptions:
    model: str
    stem: Annotated[str, OneOf(STEMS)]
    width: Count
    depth: Count
    patch_size: Count


@dataclass(frozen=True)
class MethodOptions:
    hidden_dim: Count | None
    projection_dim: Count
    projector_layers: Annotated[int, Range(2)]
    predictor_dim: Count
    prototypes: Count
    temperature: Positive
    student_temperature: Positive
    teacher_temperature: Positive
    warmup_teacher_temperature: Positive
    temperature_warmup: PositiveShare
    ema: Share
    ema_schedule: Annotated[str, OneOf(("constant", "cosine"))]
    redundancy: NonNegative
    loss_scale: Positive
    invariance: NonNegative
    variance: NonNegative
    covariance: NonNegative
    sinkhorn_epsilon: Positive
    sinkhorn_iterations: Count
    frozen_prototypes: Share
    label_smoothing: Annotated[float, Range(0, 0.999)]
    view: View
    view1: View
    view2: View
    local_views: Annotated[int, Range(0)]
    local_view: View


@dataclass(frozen=True)
class OptimizerOptions:
    lr: Positive
    momentum: Annotated[float, Range(0, 0.9999)]
    nesterov: bool
    weight_decay: NonNegative
    decay_norm_and_bias: bool
    exclude_bias_and_norm: bool
    trust_coefficient: Positive
    clip: bool
    schedule: Annotated[str, OneOf(("constant", "cosine"))]
    warmup_epochs: NonNegative


OPTIONS: dict[str, type] = {
    "dataset": DatasetOptions,
    "prior": PriorOptions,
    "transport": TransportOptions,
    "switch": SwitchOptions,
    "learner": LearnerOptions,
    "method": MethodOptions,
    "optimizer": OptimizerOptions,
}


# ----------------------------------------------------------------------------------------------- conversion


def from_tree(tree: Mapping[str, Any]) -> Config:
    """The validated `Config` of a composed, resolved tree of plain values.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems: list[str] = []
    tree = {**tree, "budget": 1.0 if tree.get("budget") is None else tree["budget"]}
    tree = {k: v for k, v in tree.items() if k not in ("experiment", "sweep", "hydra")}
    config = typing.cast(Config, _record(Config, tree, "", problems))
    if not problems:
        _cross_checks(config, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def to_tree(config: Config) -> dict[str, Any]:
    """The plain tree of a config, in the form that `from_tree` takes and config.yaml shows."""
    tree = dataclasses.asdict(config)
    for group in PARTS:
        part = tree[group]
        card = {key: value for key, value in part["card"].items() if value is not None}
        tree[group] = {"name": part["name"], "_target_": part["target"], **part["options"]}
        tree[group] |= {"card": card} if card else {}
    return tree


def _without_cards(value: Any) -> Any:
    """An option that is a part's own yaml, such as `prior.learner`, without its card."""
    return {k: v for k, v in value.items() if k != "card"} if isinstance(value, Mapping) else value


def _record(cls: type, value: Any, key: str, problems: list[str]) -> Any:
    """A dataclass from a mapping; keys are checked both ways."""
    if not isinstance(value, Mapping):
        problems.append(f"{key}={value} must be a group of keys, not a single value")
        return None
    if cls is Part:
        return _part(value, key, problems)
    hints = typing.get_type_hints(cls, include_extras=True)
    problems += [f"unknown key {_join(key, k)}{nearest(k, hints)}" for k in value if k not in hints]
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    problems += [f"missing key {_join(key, k)}" for k in hints if k in required and k not in value]
    known = {k: _checked(hints[k], v, _join(key, k), problems) for k, v in value.items() if k in hints}
    return cls(**known) if required <= known.keys() else None


def _part(value: Mapping[str, Any], group: str, problems: list[str]) -> Part | None:
    """A part from its yaml. The yaml is its own list of keys; those that ours share are checked by type."""
    lacking = [k for k in ("name", "_target_") if not isinstance(value.get(k), str)]
    if lacking:
        problems.append(f"{group} has no {' and no '.join(lacking)}: its yaml must say both")
        return None
    hints = typing.get_type_hints(OPTIONS[group], include_extras=True)
    options = {}
    for key, option in value.items():
        if key not in OWN_KEYS:
            options[key] = _checked(hints[key], option, f"{group}.{key}", problems) if key in hints else option
    card = _record(Card, value.get("card") or {}, f"{group}.card", problems)
    return Part(value["name"], value["_target_"], options, card)


def _checked(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """`value` as `hint` wants it; a complaint goes to `problems`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _checked(arguments[0], value, key, problems)
    if origin is Annotated:
        before = len(problems)
        value = _checked(arguments[0], value, key, problems)
        complaint = arguments[1].complaint(value) if len(problems) == before else None
        if complaint:
            problems.append(f"{key}={value} {complaint}")
        return value
    if origin is tuple:
        return _sequence(arguments, value, key, problems)
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, key, problems)
    return _scalar(hint, value, key, problems)


def _sequence(arguments: tuple[Any, ...], value: Any, key: str, problems: list[str]) -> Any:
    hints = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, list | tuple) else arguments
    if not isinstance(value, list | tuple) or len(hints) != len(value):
        problems.append(f"{key}={value} must be a list" + (f" of {len(hints)}" if arguments[1:] != (...,) else ""))
        return value
    return tuple(_checked(h, v, f"{key}[{i}]", problems) for i, (h, v) in enumerate(zip(hints, value, strict=True)))


WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def _scalar(hint: type, value: Any, key: str, problems: list[str]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        as_typed = value is None or (hint is str and isinstance(value, bool))
        shown = {None: "null", True: "true", False: "false"}[value] if as_typed else value
        problems.append(f"{key}={shown} must be {WORDS[hint]}{_quoting(hint, value, key)}")
    return value


def _quoting(hint: type, value: Any, key: str) -> str:
    """How text is written that YAML, or Hydra, would read as something else: a yaml has 2024_11_28 as 20241128."""
    if hint is not str or not isinstance(value, int | float | None):
        return ""
    return f'; if it is text put it in quotes in the yaml ({key.rpartition(".")[2]}: "..."), or say \'{key}="..."\''


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _cross_checks(config: Config, problems: list[str]) -> None:
    """Rules that tie several keys together; those that need the dataset's size stand in `Lengths`."""
    if not config.probe.protocols:
        problems.append(f"probe.protocols is empty; allowed are {', '.join(PROTOCOLS)}")
    _check_prior(config.prior, problems)
    _check_batch(config, problems)
    for group in PARTS:
        part: Part = getattr(config, group)
        if part.target.partition(".")[0] == "rela_cli" and not part.target.startswith(HOMES[group]):
            problems.append(f"{group}={part.name} names {part.target}, but a {group} is one of {HOMES[group]}*")
        problems += [
            f"{group}={part.name} wants to run {target}, which is not part of rela; "
            f"if you trust it say allow=[{target.partition('.')[0]}]"
            for target in part.foreign(("rela_cli", *config.allow))
        ]


def _check_batch(config: Config, problems: list[str]) -> None:
    """A batch can be shared out evenly."""
    shares = max(config.runtime.devices, ranks.world()) * config.accumulate
    if config.batch_size % shares or config.batch_size < 2 * config.accumulate:
        near = max(2 * config.accumulate, shares, config.batch_size // shares * shares)
        problems.append(
            f"batch_size={config.batch_size} cannot be shared out evenly over {shares // config.accumulate} processes "
            f"times accumulate={config.accumulate}; say batch_size={near}"
        )


def _check_prior(prior: Part, problems: list[str]) -> None:
    """What a prior cannot do without."""
    weights = prior.options.get("weights")
    if weights == "":
        problems.append(f"prior={prior.name} needs prior.weights=PATH (a .safetensors or weights-only .pth file)")
    grid = "patches" in prior.options  # of the prior that is made of patches; of others it is a name
    pool = prior.options.get("pool")
    if prior.target.startswith("rela_cli.") and pool is not None and isinstance(pool, int) != grid:
        wants = "a whole number" if grid else f"one of {', '.join(POOLS)}"
        problems.append(f"prior.pool={pool} must be {wants} for prior={prior.name}")
    if prior.options.get("model") == "":
        problems.append(f"prior={prior.name} needs prior.model=NAME")
    if prior.options.get("run") == "":
        problems.append(f"prior={prior.name} needs prior.run=FOLDER, a finished run such as outputs/runs/latest")
    if weights == PRETRAINED and prior.options.get("model") and "tag" in prior.options and not prior.options["tag"]:
        problems.append(f"prior={prior.name} needs prior.tag=TAG (whose weights), or prior.weights=PATH")


def _targets(value: Any) -> list[str]:
    """Every `_target_` inside some options."""
    if isinstance(value, Mapping):
        own = [str(value["_target_"])] if "_target_" in value else []
        return own + [target for inner in value.values() for target in _targets(inner)]
    return [target for inner in value for target in _targets(inner)] if isinstance(value, list | tuple) else []


# ----------------------------------------------------------------------------------------- derived numbers


@dataclass(frozen=True)
class Lengths:
    """How long a run is; derived from the config and the dataset's size in this one place.

    An epoch is one pass over the subset, the last partial batch dropped (ReLA-F in the paper).
    """

    train_samples: int
    subset_size: int
    steps_per_epoch: int
    total_steps: int
    samples_seen: int


def lengths(config: Config, train_samples: int) -> Lengths:
    """Subset size and steps for a train split of `train_samples`.

    Raises:
        ConfigError: when one batch is larger than the subset.
    """
    subset_size = math.floor(config.budget * train_samples + 1e-9)
    steps_per_epoch = subset_size // config.batch_size
    if steps_per_epoch == 0:
        too_few = "A batch takes 2 at the least: say a larger budget"
        way_out = f"Say batch_size={subset_size} or less" if subset_size >= 2 else too_few
        raise ConfigError(
            f"batch_size={config.batch_size} is larger than the subset: budget={config.budget:g} of "
            f"{train_samples} samples is {subset_size}. {way_out}, or take more"
        )
    steps = steps_per_epoch * config.epochs
    return Lengths(train_samples, subset_size, steps_per_epoch, steps, steps * config.batch_size)
