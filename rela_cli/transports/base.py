"""The contract of a transport: fitted on a stream of feature blocks, then a map features -> targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError

CPU = torch.device("cpu")


def matched_width(feature_dim: int, components: int, ordered: bool, per_feature: int = 1) -> int:
    """How many of a transport's components a learner of `feature_dim` features is matched to."""
    return min(components, per_feature * feature_dim) if ordered else components


class Transport:
    """A map (N, D_p) -> (N, k), float64 inside."""

    follows_device: bool = False  # True: it is fitted, and maps, on whatever device the features lie on
    shared: bool = False  # True: every rank sees a share of the features, and all fit the same map
    ordered: bool = False  # True: components come in order of importance, so a learner may take the first few
    per_feature: int = 1  # where they are ordered: components for each feature that a learner has

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

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a map that was fitted before, on the device that `state` lies on; after it, `__call__` works.

        state: what `state` gave. Where its names are not those of the attributes, a transport has a `load` of its own.
        """
        for name, value in state.items():
            setattr(self, name, value)

    def facts(self) -> dict[str, object]:
        """What the manifest should say: dimensions, explained variance, dead components."""
        raise NotImplementedError


class SideBySide(Transport):
    """Several maps, each of the features of its own prior: (N, D_1 + D_2 + ...) -> (N, k_1 + k_2 + ...).

    Where components come in order of importance they alternate between the maps, so that the first n of them are the
    first n / M of each of M maps; else the targets of one map follow those of another.
    """

    def __init__(self, maps: Sequence[Transport], widths: Sequence[int], columns: Tensor, factors: Tensor) -> None:
        """widths: D of each map. columns (k,) int64: which of all targets in a row is the i-th. factors: (k,)."""
        self.maps, self.widths, self.columns, self.factors = maps, widths, columns, factors
        self.ordered, self.per_feature = maps[0].ordered, maps[0].per_feature

    @classmethod
    def read(cls, maps: Sequence[Transport], state: Mapping[str, Tensor]) -> SideBySide:
        """From what `state` gave; the maps are not fitted yet."""
        for number, one in enumerate(maps):
            one.load(member_state(state, number))
        return cls(maps, state["widths"].tolist(), state["columns"], state["factors"])

    def __call__(self, features: Tensor) -> Tensor:
        parts = features.split(list(self.widths), dim=1)
        found = torch.cat([one(part) for one, part in zip(self.maps, parts, strict=True)], dim=1)
        return found[:, self.columns] * self.factors

    def state(self) -> dict[str, Tensor]:
        own = {"widths": torch.tensor(self.widths), "columns": self.columns, "factors": self.factors}
        return own | {f"{i}.{key}": value for i, one in enumerate(self.maps) for key, value in one.state().items()}


def member_state(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """What the state of maps side by side has of one of them."""
    return {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{number}.")}


def column_order(widths: Sequence[int], ordered: bool) -> Tensor:
    """The columns of several targets side by side, (k_1 + k_2 + ...,) int64: alternating where they are ordered."""
    starts = [sum(widths[:number]) for number in range(len(widths))]
    columns = [(i * ordered, start + i) for start, width in zip(starts, widths, strict=True) for i in range(width)]
    return torch.tensor([column for _, column in sorted(columns, key=lambda column: column[0])])


def taken_up(part: Part, path: Path, what: str, instead: str, device: torch.device = CPU) -> Transport:
    """A transport with the map that a file holds, as stage transport has written it.

    Raises:
        ConfigError: it cannot take up a map; `what` asked for that, and `instead` is the way out.
    """
    mapping: Transport = instantiate(part)
    if not hasattr(mapping, "load"):
        raise ConfigError(
            f"{what} needs transport={part.name} to have a method load(state), which takes up what state() gave; "
            f"without it say {instead}"
        )
    state = {name: value.to(device) for name, value in load_file(path).items()}
    if "widths" in state:
        return SideBySide.read([instantiate(part) for _ in state["widths"]], state)
    mapping.load(state)
    return mapping
