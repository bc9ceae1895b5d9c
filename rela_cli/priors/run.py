"""The backbone of one of our own finished runs, as the paper's BYOL-trained priors are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rela_cli.config.schema import Part
from rela_cli.learners.build import build_backbone, load_backbone, measured_width, refused
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.weights.run_folder import run_facts


class RelaRun(NetworkPrior):
    """What the run in folder `run` trained, fed as it was trained: its own mean and std, and its own size unless given.

    Raises:
        MissingError: not a finished run. ConfigError: its learner is a class from a package that is not allowed, or
        cannot take images of that size.
    """

    def __init__(self, run: str, network: str, image_size: int | None = None, allow: Sequence[str] = ()) -> None:
        facts = run_facts(Path(run))
        backbone = load_backbone(run, network, allow)
        size = image_size or facts["image_size"]
        with refused(f"the network of {run} cannot take images of {size} px"):
            measured_width(backbone, size)
        super().__init__(backbone, Preprocess(size, facts["mean"], facts["std"]))


class UntrainedLearner(NetworkPrior):
    """The learner of a run before any training, fed as the run's is: what its training is compared with."""

    def __init__(
        self, learner: dict[str, Any], seed: int, built_at: int, image_size: int, mean: list[float], std: list[float]
    ) -> None:
        backbone = build_backbone(Part.from_tree(learner), seed, built_at)
        super().__init__(backbone, Preprocess(image_size, mean, std))
