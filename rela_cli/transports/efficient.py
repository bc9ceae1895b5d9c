"""The map behind an efficient dataset."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from rela_cli.transports.base import Transport


class OfDataset(Transport):
    """Stands for a map that has done its work, where the class that it was of is not part of rela; never fitted."""

    def fit(self, blocks: Iterable[Tensor]) -> None:
        raise NotImplementedError
