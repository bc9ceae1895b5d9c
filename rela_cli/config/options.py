"""What the keys of our own parts may hold: one dataclass for each config group whose yamls name classes.

A key belongs to every part of its group that has it. A part from outside has keys of its own, which are not checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rela_cli.config.ranges import (
    Count,
    CountOrOneOf,
    NonNegative,
    OneOf,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
)
from rela_cli.config.schema import (
    ALL,
    CHANNELS,
    FRESH,
    INTERPOLATIONS,
    KEEP,
    LEARNER,
    NETWORKS,
    POOLS,
    STEMS,
    TWICE,
    Part,
    View,
)


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
    ignore_label: Annotated[int, Range(0, 255)] | None
    background: Annotated[int, Range(0, 254)] | None
    dataset: str
    hub: str | None
    on_error: Annotated[str, OneOf(("raise", "skip"))]
    max_errors: Annotated[int, Range(0)]
    image_column: str
    label_column: str
    labels: str | None
    test_share: Annotated[float, Range(0, 0.9, above=True)]
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
    network: Annotated[str, OneOf((*NETWORKS,))]
    patches: Count
    patch_size: Annotated[int, Range(2)]
    pool: Annotated[object, CountOrOneOf(POOLS, f"one of {', '.join(POOLS)} (of patches: 1, 2, ...)")]
    channels: Annotated[str, OneOf(CHANNELS)]
    output: str | None
    members: tuple[Part, ...]


@dataclass(frozen=True)
class TransportOptions:
    max_dim: Count
    dims: Annotated[object, CountOrOneOf((LEARNER, TWICE, ALL))]
    power: Share
    center: bool
    seed: Seed


@dataclass(frozen=True)
class SwitchOptions:
    constants: Annotated[str, OneOf(("reference", "share"))]
    threshold: PositiveShare
    at: Share
    moments: Annotated[str, OneOf((KEEP, FRESH))]
    warmup_epochs: NonNegative


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
    temperature_by: Annotated[str, OneOf(("step", "epoch"))]
    teacher_head: Annotated[str, OneOf(("copy", "own"))]
    loss: Annotated[str, OneOf(("squared_distance", "negative_cosine"))]
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
