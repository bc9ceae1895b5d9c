"""The contract of a transport: fitted on a stream of feature blocks, then a map features -> targets."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class Transport:
    """A map (N, D_p) -> (N, k), float64 inside."""

    shared: bool = False  # True: every rank sees a share of the features, and all fit the same map
    ordered: bool = False  # True: components come in order of importance, so a learner may take the first few

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """See all features once, block by block."""
        raise NotImplementedError

    def __call__(self, features: Tensor) -> Tensor:
        """Targets of some features."""
        raise NotImplementedError

    def rounded(self, features: Tensor) -> Tensor:
        """Targets to be stored in fp16, from stored features: float32, and as good as fp16 can show."""
        return self(features).float()

    def state(self) -> dict[str, Tensor]:
        """The fitted map as tensors."""
        raise NotImplementedError

    def facts(self) -> dict[str, object]:
        """What the manifest should say: dimensions, explained variance, dead components."""
        raise NotImplementedError
