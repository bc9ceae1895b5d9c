"""Stages 1 and 2 of a run: features and targets, of images, of light views and of tokens, each made once for all runs.

Of an ensemble of priors each member's are made as those of a run with this prior alone, and then joined.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli.distributed import ranks
from rela_cli.pipeline.artifacts import CLEAN, VIEWS, Artifacts
from rela_cli.pipeline.making import is_intact, make_together
from rela_cli.pipeline.run import Run
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts

if TYPE_CHECKING:
    from rela_cli.data.batches.cache import ImageStats, Split
    from rela_cli.data.efficient.folder import EfficientFolder


class TargetMaking:
    """Makes what is missing of a run's features and targets; its images are there. `clock` counts a stage's seconds."""

    def __init__(self, run: Run, clock: Callable[[str], AbstractContextManager[None]]) -> None:
        self.run, self.config, self.clock = run, run.config, clock

    def make(self, until: str) -> None:
        """Make what stage `until` needs: features for extract, features and targets for any later stage."""
        self.make_clean(until)
        if self.config.has_views:
            self.make_views(until)
        if self.config.has_tokens:
            self.make_tokens(until)

    def make_tokens(self, until: str) -> None:
        """With extract.tokens=true: the feature maps of train images, or of their light views, and their targets."""
        one = self.run.artifacts
        if until == "transport" and ranks.agree(is_intact(one.token_targets)):
            return
        make_together(one.tokens, self.extract_tokens, goes_on=True)
        if until == "transport":
            make_together(one.token_targets, self.transport_tokens)

    def make_clean(self, until: str) -> None:
        """Features and targets of the clean view of each image."""
        from rela_cli.data.efficient.targets import bring_targets
        from rela_cli.stages.ensemble import joined_targets

        if until == "transport" and ranks.agree(is_intact(self.run.targets)):
            return
        if self.run.brought:
            make_together(self.run.targets, partial(self.bring, bring_targets))
            return
        for one in self.run.artifacts.singles:
            self.make_single(one, until)
        if self.run.artifacts.members:
            features = [one.features for one in self.run.artifacts.members]
            self.join(CLEAN, until, lambda targets, folder: joined_targets(targets, features, folder))

    def make_single(self, one: Artifacts, until: str) -> None:
        """Features and targets of the clean views, by one prior."""
        make_together(one.features, partial(self.extract, one), goes_on=True)
        if until == "transport":
            make_together(one.targets, partial(self.transport, one))

    def make_views(self, until: str) -> None:
        """With extract.views above 1: features and targets of light views. The map is that of the clean views."""
        from rela_cli.data.efficient.targets import bring_view_targets
        from rela_cli.stages.ensemble import joined_views

        if until == "transport" and ranks.agree(is_intact(self.run.view_targets)):
            return
        if self.run.brought:
            make_together(self.run.view_targets, partial(self.bring, bring_view_targets))
            return
        for one in self.run.artifacts.singles:
            make_together(one.views, partial(self.extract_views, one), goes_on=True)
            if until == "transport":
                if not ranks.agree(is_intact(one.targets)):  # an ensemble's member, whose map is needed
                    self.make_single(one, until)
                make_together(one.view_targets, partial(self.transport_views, one))
        if self.run.artifacts.members:
            self.join(VIEWS, until, lambda targets, folder: joined_views(targets, self.run.targets, folder))

    def join(self, kinds: tuple[str, str], until: str, join: Callable[[list[Entry], Path], Facts]) -> None:
        """The features and targets of an ensemble, of clean images or of views, from those of its members."""
        from rela_cli.stages.ensemble import joined_features

        features, targets = ([getattr(one, kind) for one in self.run.artifacts.members] for kind in kinds)
        make_together(getattr(self.run, kinds[0]), lambda folder: joined_features(features) if folder else {})
        if until == "transport":
            make_together(getattr(self.run, kinds[1]), lambda folder: join(targets, folder) if folder else {})

    def extract(self, one: Artifacts, folder: Path | None) -> Facts:
        from rela_cli.data.batches.cache import read_split, read_stats
        from rela_cli.stages.extract import extract

        images = self.run.images
        with self.clock("extract"):
            dataset = self.run.dataset
            splits = {name: split for name in dataset.splits if (split := read_split(images, name, dataset))}
            return extract(replace(self.config, prior=one.prior), splits, read_stats(images), folder)

    def transport(self, one: Artifacts, folder: Path | None) -> Facts:
        from rela_cli.stages.transport import transport

        with self.clock("transport"):
            return transport(self.config, one.features.folder, folder)

    def extract_views(self, one: Artifacts, folder: Path | None) -> Facts:
        from rela_cli.stages.extract import extract_views

        with self.clock("extract"):
            train, data = self.train_images()
            config = replace(self.config, prior=one.prior)
            return extract_views(config, train, data, self.run.dataset.flip, folder)

    def train_images(self) -> tuple[Split, ImageStats]:
        """The train images, and what is known of them."""
        from rela_cli.data.batches.cache import read_split, read_stats

        train = read_split(self.run.images, "train", self.run.dataset)
        assert train is not None
        return train, read_stats(self.run.images)

    def transport_views(self, one: Artifacts, folder: Path | None) -> Facts:
        from rela_cli.stages.transport import transport_views

        with self.clock("transport"):
            return transport_views(self.config, one.views.folder, one.targets.folder, folder)

    def extract_tokens(self, folder: Path | None) -> Facts:
        from rela_cli.stages.extract import extract, extract_views

        grid = self.config.extract.token_grid
        with self.clock("extract"):
            train, data = self.train_images()
            if self.config.has_views:
                return extract_views(self.config, train, data, self.run.dataset.flip, folder, grid)
            return extract(self.config, {"train": train}, data, folder, grid)

    def transport_tokens(self, folder: Path | None) -> Facts:
        from rela_cli.stages.transport import transport

        tokens = self.run.artifacts.tokens
        facts = tokens.manifest or {}
        views = facts.get("views", 1)
        with self.clock("transport"):
            made = transport(self.config, tokens.folder, folder, facts["cells"] * views)
        return {**made, "views": views, "cells": facts["cells"], "covered": facts["covered"]} if made else made

    def bring(self, write: Callable[[EfficientFolder, Path], Facts], folder: Path | None) -> Facts:
        """The targets of an efficient dataset, into the cache."""
        assert self.run.brought is not None
        with self.clock("transport"):
            return write(self.run.brought.folder, folder) if folder else {}
