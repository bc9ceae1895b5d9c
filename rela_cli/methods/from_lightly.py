"""The heads and losses that methods take from lightly, without timm.

Where timm can be imported lightly brings in all of its networks, and wandb with them: more modules than torch has, a
fifth of the time until the first step, and nothing that a method here uses. A learner or a prior that wants timm
imports it itself, before or after.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(name: str) -> Iterator[None]:
    """Inside, a package that nobody has imported yet cannot be imported."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # which is Python's own word for it
    try:
        yield
    finally:
        del sys.modules[name]


with absent("timm"):
    from lightly.loss import DINOLoss, NegativeCosineSimilarity, SwaVLoss
    from lightly.models.modules import (
        BYOLPredictionHead,
        BYOLProjectionHead,
        DINOProjectionHead,
        SimCLRProjectionHead,
        SimSiamPredictionHead,
        SwaVProjectionHead,
    )
    from lightly.models.modules.heads import ProjectionHead

__all__ = [
    "BYOLPredictionHead",
    "BYOLProjectionHead",
    "DINOLoss",
    "DINOProjectionHead",
    "NegativeCosineSimilarity",
    "ProjectionHead",
    "SimCLRProjectionHead",
    "SimSiamPredictionHead",
    "SwaVLoss",
    "SwaVProjectionHead",
]
