"""No prior: the plain method."""

from __future__ import annotations

from typing import Any

from rela_cli.errors import RelaError


class NoPrior:
    """Stands for the plain method; the pipeline never asks it for features."""

    def __init__(self, **_: Any) -> None:
        raise RelaError("prior=none has no features")
