"""The features as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rela_cli.transports.base import Transport


class Identity(Transport):
    """No map at all: targets are features, all of them."""

    follows_device = True

    def fit(self, blocks: Iterable[Tensor]) -> None:
        self.dim = next(iter(blocks)).shape[1]

    def __call__(self, features: Tensor) -> Tensor:
        return features.double()

    def state(self) -> dict[str, Tensor]:
        return {"dim": torch.tensor(self.dim)}

    def facts(self) -> dict[str, object]:
        return {"dim": self.dim, "dead": 0}
