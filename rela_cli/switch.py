"""When phase 1 ends. A switch keeps its state in a tensor beside the loss, so that watching it stalls nothing.

The contract, per step: `check()` before the step, `observe(loss)` after it; `should_leave()` reads the verdict, which
waits for the device, so the loop asks as seldom as it likes. Steps count from 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rela_cli.config.schema import KEEP

REFERENCE_TIMES = (1 / -math.log(0.999), 1 / -math.log(0.99))  # steps, of the fast and the slow average

SHARE_TIMES = (1 / 4, 1 / 40)  # the same two as shares of the run: leaves at 0.7 to 0.85 of it (docs/experiments.md)


class Switch:
    """What all switches share: a state tensor (5,) float64 of fast, slow, rho, steps checked, step of leaving.

    moments and warmup_epochs say how the method takes over: "keep" leaves the optimizer what it remembers of matching,
    "fresh" makes it forget; the rate rises linearly over the first `warmup_epochs` of phase 2 (0: it does not).
    """

    moments: str = KEEP
    warmup_epochs: float = 0.0

    def __init__(self, total_steps: int, device: torch.device, moments: str = KEEP, warmup_epochs: float = 0.0) -> None:
        self.total_steps, self.moments, self.warmup_epochs = total_steps, moments, warmup_epochs
        self.state = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0], dtype=torch.float64, device=device)

    def check(self, checked: Tensor | None = None) -> None:
        """Start a step: compute rho from the losses so far and note the first step at which it is time to leave.

        checked: the state that this leaves, where that was computed already.
        """
        self.state = self.checked() if checked is None else checked

    def checked(self) -> Tensor:
        """The state that `check` will leave."""
        fast, slow, _, step, left = self.state
        step = step + 1
        rho = self.rho(fast, slow, step)
        left = torch.where((left == 0) & self.condition(rho, step), step, left)
        return torch.stack((fast, slow, rho, step, left))

    def observe(self, loss: Tensor) -> None:
        """Take in the matching loss of the step."""

    def rho(self, fast: Tensor, slow: Tensor, step: Tensor) -> Tensor:
        """How settled phase 1 is, from 0 to 1; metrics show it."""
        return torch.zeros_like(step)

    def condition(self, rho: Tensor, step: Tensor) -> Tensor:
        """Whether phase 1 should be over at this step."""
        return torch.zeros_like(step, dtype=torch.bool)

    def should_leave(self) -> bool:
        """Whether it is time to leave, or was before; waits for the device."""
        return bool(self.state[4].item())


class Adaptive(Switch):
    """Two running averages of the loss: phase 1 is over when the fast one stops moving (ReLA-F in the paper).

    constants "reference" are the paper's, in steps (momenta 0.999 and 0.99), so a run of a few hundred steps never
    switches; "share" turns both time constants into shares of the run's length.
    """

    def __init__(
        self,
        constants: str,
        threshold: float,
        total_steps: int,
        device: torch.device,
        moments: str = KEEP,
        warmup_epochs: float = 0.0,
    ) -> None:
        super().__init__(total_steps, device, moments, warmup_epochs)
        times = REFERENCE_TIMES if constants == "reference" else [share * total_steps for share in SHARE_TIMES]
        self.fast_momentum, self.slow_momentum = (math.exp(-1 / max(time, 1e-9)) for time in times)
        self.threshold = threshold

    def observe(self, loss: Tensor) -> None:
        fast, slow, rho, step, left = self.state
        fast = self.fast_momentum * fast + (1 - self.fast_momentum) * loss
        slow = self.slow_momentum * slow + (1 - self.slow_momentum) * fast
        self.state = torch.stack((fast, slow, rho, step, left))

    def rho(self, fast: Tensor, slow: Tensor, step: Tensor) -> Tensor:
        return torch.exp((fast - slow).clamp(max=0))

    def condition(self, rho: Tensor, step: Tensor) -> Tensor:
        return rho >= self.threshold


class Fixed(Switch):
    """After a share of the run's steps."""

    def __init__(
        self, at: float, total_steps: int, device: torch.device, moments: str = KEEP, warmup_epochs: float = 0.0
    ) -> None:
        super().__init__(total_steps, device, moments, warmup_epochs)
        self.steps = math.floor(at * total_steps + 1e-9)

    def condition(self, rho: Tensor, step: Tensor) -> Tensor:
        return step > self.steps


class Never(Switch):
    """Matching to the last step."""
