"""What a prior makes of a run's images, as entries of the cache: runs that share images and prior share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rela_cli.config.schema import Config, Part
from rela_cli.store.entries import Entry, entry_of

CLEAN, VIEWS, TOKENS = ("features", "targets"), ("views", "view_targets"), ("tokens", "token_targets")  # of entries


@dataclass(frozen=True)
class Source:
    """What all entries of a run are made of besides the prior."""

    cache: Path
    images: str  # hash
    precision: dict[str, str]
    transport: dict[str, Any]
    view: dict[str, Any]
    tokens: dict[str, Any] = field(default_factory=dict)  # what is made of a feature map, besides the rest


@dataclass(frozen=True)
class Artifacts:
    """Features and targets by one prior, of clean images and with extract.views above 1 of light views."""

    source: Source
    prior: Part
    identity: dict[str, Any]
    members: tuple[Artifacts, ...] = ()

    @cached_property
    def features(self) -> Entry:
        """The prior's outputs: they depend on the pixels and on the prior's weights, not on where either lies."""
        return self.entry("features", **self.of_images)

    @cached_property
    def targets(self) -> Entry:
        """What a learner is matched to. The same for every learner: each takes its first components."""
        return self.entry("targets", features=self.features.hash, transport=self.source.transport)

    @cached_property
    def views(self) -> Entry:
        """The prior's outputs of light views, and the boxes that say what these are."""
        return self.entry("views", **self.of_images, view=self.source.view)

    @cached_property
    def view_targets(self) -> Entry:
        """What the map that was fitted to the clean views makes of them."""
        return self.entry("view_targets", views=self.views.hash, map=self.targets.hash)

    @property
    def of_images(self) -> dict[str, Any]:
        """What the prior's outputs are made of."""
        return {"images": self.source.images, "prior": self.identity, **self.source.precision}

    def entry(self, kind: str, **spec: Any) -> Entry:
        """The entry of a kind, by what it is made of."""
        return entry_of(kind, spec, self.source.cache)

    @cached_property
    def tokens(self) -> Entry:
        """The prior's feature map of each train image, or with extract.views above 1 of each light view."""
        return self.entry("tokens", **self.of_images, **self.source.tokens)

    @cached_property
    def token_targets(self) -> Entry:
        """What a map of their own, fitted to all cells, makes of them."""
        return self.entry("token_targets", tokens=self.tokens.hash, transport=self.source.transport)

    @property
    def singles(self) -> tuple[Artifacts, ...]:
        """What is made by one prior alone: that of each member of an ensemble, else all of it."""
        return self.members or (self,)


@dataclass(frozen=True)
class JoinedArtifacts(Artifacts):
    """The artifacts of an ensemble: the entries of its members, which are the members' own, and what is joined of them.

    Its features say no more than which entries they are; its targets are those of the members side by side.
    """

    def entry(self, kind: str, **spec: Any) -> Entry:
        if kind == "view_targets":  # whose map is that of the joined targets
            return super().entry(kind, **spec)
        return super().entry(kind, members=[getattr(member, kind).hash for member in self.members])


@dataclass(frozen=True)
class GivenArtifacts(Artifacts):
    """The artifacts that an efficient dataset brings, under the names that they had where it was made."""

    specs: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def entry(self, kind: str, **spec: Any) -> Entry:
        return Entry(kind, self.specs[kind], self.source.cache)


def kinds_of(config: Config) -> list[str]:
    """The kinds of entries that stages extract and transport make for a run, in pairs: features and targets."""
    if config.is_plain:
        return []
    return [*CLEAN, *(VIEWS if config.has_views else ()), *(TOKENS if config.has_tokens else ())]


def cut_of_views(config: Config, flip: bool) -> dict[str, Any]:
    """With extract.views above 1: how many light views are cut of an image, and how."""
    view = config.matching.view
    cut = {"count": config.extract.views, "scale": view.crop_scale, "ratio": view.crop_ratio}
    return {**cut, "flip_p": view.flip_p if flip else 0.0}


def map_of_tokens(config: Config, cut: dict[str, Any]) -> dict[str, Any]:
    """With extract.tokens=true: how many cells a side, and the light views where there are any."""
    return {"grid": config.extract.token_grid, **({"view": cut} if config.has_views else {})}


def artifacts(source: Source, prior: Part, identity: dict[str, Any]) -> Artifacts:
    """The artifacts of a prior. Those of an ensemble hold its members', whose identities stand in its own."""
    if not prior.members:
        return Artifacts(source, prior, identity)
    members = zip(prior.members, identity["members"], strict=True)
    return JoinedArtifacts(source, prior, identity, tuple(Artifacts(source, *member) for member in members))
