"""What an efficient dataset brings into a run: the prior and the transport that its targets are of, and their names.

The run is the one that these had given: the same settings, the same hash, the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rela_cli.config.schema import EFFICIENT, HOMES, Card, Config, Part
from rela_cli.data.base import Dataset
from rela_cli.data.efficient.dataset import Efficient
from rela_cli.data.efficient.folder import EfficientFolder
from rela_cli.errors import ConfigError
from rela_cli.store.files import Facts

WEIGHTLESS = ("name", "class", "run", "built", "network")  # of a prior's identity: no keys of its class, or of a run


class Brought:
    """The targets of an efficient dataset, seen from a run."""

    def __init__(self, folder: EfficientFolder, labels_seen: tuple[str, ...] | None = None) -> None:
        """labels_seen: what the command line says of the prior's labels (prior.card.labels_seen); None: nothing."""
        self.folder, self.prior_told, self.labels_seen = folder, dict(folder.facts["prior"]), labels_seen

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> Brought | None:
        """None where a prior of the user's own, or none, takes the place of the folder's."""
        if not isinstance(dataset, Efficient) or config.prior.target != EFFICIENT:
            return None
        return cls(dataset.folder, config.prior.card.labels_seen)

    @property
    def prior(self) -> Part:
        """The prior by its name and its facts; it cannot be built, for its weights may lie elsewhere."""
        told = self.prior_told
        identity: Facts = told["identity"]
        options = {key: value for key, value in identity.items() if key not in WEIGHTLESS}
        if "run" in identity:
            options["weights"] = identity["run"]
        seen = told["labels_seen"] if self.labels_seen is None else self.labels_seen
        card = Card(
            features=told["features"],
            licence=told["licence"],
            trained_on=told["trained_on"],
            labels_seen=None if seen is None else tuple(seen),
            labels_unknown=self.labels_seen is None and told.get("labels_unknown", False),
        )
        return Part(told["name"], EFFICIENT, options, card)

    @property
    def transport(self) -> Part:
        """The transport, of a class of ours or of the one that stands for all others."""
        told = self.folder.facts["transport"]
        ours = HOMES["transport"]
        target = told["target"] if str(told["target"]).startswith(ours) else f"{ours}efficient.OfDataset"
        return Part(told["name"], target, told["options"])

    def check_views(self, count: int, cut: Facts) -> None:
        """The light views that a run asks for are those that the folder holds.

        Raises:
            ConfigError: it holds none, or others.
        """
        there = self.folder.views
        if there is None or there["count"] != count:
            has = f"{there['count']} light views" if there else "no light views"
            way = f"say extract.views={there['count']}" if there else "leave extract.views out"
            raise ConfigError(
                f"extract.views={count}: {self.folder.root} holds {has} of each image; {way}, or convert again with "
                f"extract.views={count}"
            )
        if there["cut"] != json.loads(json.dumps(cut)):
            raise ConfigError(
                f"matching.view cuts other views ({cut}) than those that {self.folder.root} holds ({there['cut']}): "
                f"leave it as it was, or convert again"
            )

    @property
    def result_facts(self) -> dict[str, Any]:
        """What result.json says of a prior that is a run: its name."""
        return {key: self.prior_told[key] for key in ("prior_run",) if key in self.prior_told}


def settled(config: Config, dataset: Dataset, brought: Brought | None) -> Config:
    """The config with what an efficient dataset stands for: dataset, prior and transport as they were converted."""
    if isinstance(dataset, Efficient):
        told = dataset.told
        part = Part(told["name"], told["target"], {**told["options"], "flip": dataset.flip})
        config = replace(config, dataset=part)
    return replace(config, prior=brought.prior, transport=brought.transport) if brought else config
