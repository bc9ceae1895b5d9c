"""What the host learns of the steps: the device keeps it until it comes over, all of it in one copy, every few steps.

Between two reads the host waits for nothing, and what is kept costs no kernel: it is what the steps have made anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

AVERAGES = slice(0, 3)  # of the switch's state: fast, slow, rho


@dataclass(frozen=True)
class Reading:
    """What one copy brings, all of it on the host. n steps since the copy before."""

    losses: Tensor  # (n,), of all ranks
    bad: Tensor  # (n,), 1 where a gradient was not finite
    averages: Tensor | None = None  # (n, 3) float64, in phase 1: fast, slow and rho after each step
    coming: Tensor | None = None  # the switch's state of the coming step, on the device
    leaves: bool = False  # whether it ends phase 1 before that step
    linear: tuple[int, int] = (0, 0)  # views that the linear probe was right about since the last record, and all
    stops: bool = False  # whether a signal has come to any of several ranks


NOTHING_READ = Reading(torch.empty(0), torch.empty(0))


@dataclass
class Readings:
    """Keeps what each step has made until it is read. Tensors that are kept are not written to afterwards."""

    every: int = 1  # steps from one read to the next
    last: Reading = NOTHING_READ  # what the host has read last
    step: int = -1  # after which step that was
    losses: list[Tensor] = field(default_factory=list)
    bad: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # of the switch, after each step of phase 1
    stops: list[Tensor] = field(default_factory=list)  # with several ranks

    def read(self, coming: Tensor | None = None, tally: Tensor | None = None) -> Reading:
        """All of it, by one copy; it waits for the device.

        coming: the switch's state (5,) of the coming step. tally: of the linear probe, right and all.
        """
        lists = [self.losses, self.bad, self.states, self.stops]
        kept = [torch.stack(some) for some in lists if some]
        found = iter(on_host([*kept, *(one for one in (coming, tally) if one is not None)]))
        losses, bad, states, stops = (next(found) if some else torch.empty(0) for some in lists)
        self.last = Reading(
            losses,
            bad,
            averages=states[:, AVERAGES] if self.states else None,
            coming=coming,
            leaves=coming is not None and bool(next(found)[4]),
            linear=(0, 0) if tally is None else tuple(map(int, next(found))),  # type: ignore[arg-type]
            stops=bool(self.stops) and bool(stops[-1] > 0),
        )
        for some in lists:
            some.clear()
        return self.last


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The numbers on the host, by one copy; counts up to 2^53 stay exact."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    packed = torch.cat([tensor.flatten().double() for tensor in tensors]).cpu()
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
