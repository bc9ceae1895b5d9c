"""The prior behind an efficient dataset."""

from __future__ import annotations

from typing import Any

from rela_cli.errors import RelaError


class OfDataset:
    """Stands for a prior that has done its work: the pipeline never asks it for features."""

    def __init__(self, **_: Any) -> None:
        raise RelaError("an efficient dataset brings targets and no features: those need the prior itself, prior=NAME")
