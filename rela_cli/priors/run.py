"""The backbone of one of our own finished runs, as the paper's BYOL-trained priors are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rela_cli.learners.build import load_backbone
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.weights.run_folder import run_facts


class RelaRun(NetworkPrior):
    """What the run in folder `run` trained, fed as it was trained: its own size, mean and std.

    Raises:
        MissingError: not a finished run. ConfigError: its learner is a class from a package that is not allowed.
    """

    def __init__(self, run: str, network: str, allow: Sequence[str] = ()) -> None:
        facts = run_facts(Path(run))
        backbone = load_backbone(run, network, allow)
        super().__init__(backbone, Preprocess(facts["image_size"], facts["mean"], facts["std"]))
