"""Optimizers and learning-rate schedules; a schedule is a pure function of the step.

Every optimizer here leaves its weights and its memory as they are where `found_inf` is 1: the training loop holds a
non-finite update back on the device that way, without waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.config.lengths import Lengths
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError

Parameters = Sequence[nn.Parameter]


def build_optimizer(part: Part, parameters: Parameters) -> torch.optim.Optimizer:
    """The optimizer of a config over some parameters, without the options of its schedule."""
    options = {key: value for key, value in part.options.items() if key not in ("schedule", "warmup_epochs")}
    return instantiate(replace(part, options=options), parameters=parameters)  # type: ignore[no-any-return]


def adamw(
    parameters: Parameters, lr: float, weight_decay: float, decay_norm_and_bias: bool = True
) -> torch.optim.AdamW:
    """AdamW, fused: one kernel for all parameters, which can also hold an update back on the device."""
    groups = decay_groups(parameters, weight_decay, decay_norm_and_bias)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def sgd(
    parameters: Parameters,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_norm_and_bias: bool,
) -> torch.optim.SGD:
    """SGD, fused, with the decay inside the gradient (coupled).

    Its memory starts at zero, which gives torch's own updates; torch would leave a memory without values where the
    first update is held back, and cannot add parameters that get their first gradient in phase 2.

    Raises:
        ConfigError: Nesterov's step without momentum.
    """
    if nesterov and momentum == 0:
        raise ConfigError("optimizer.nesterov=true needs optimizer.momentum above 0")
    groups = decay_groups(parameters, weight_decay, decay_norm_and_bias)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def memory_bytes(part: Part, parameters: Parameters) -> int:
    """What an optimizer will remember of its parameters, in bytes: tried with one small weight and one update."""
    weight = nn.Parameter(torch.ones(8, 8))
    weight.grad = torch.zeros_like(weight)
    optimizer = build_optimizer(part, [weight])
    optimizer.step()
    held = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    copies = sum(value.shape == weight.shape for value in held)
    return copies * sum(parameter.nbytes for parameter in parameters)


def decay_groups(parameters: Parameters, weight_decay: float, norm_and_bias: bool) -> list[dict[str, Any]]:
    """One parameter group; or two, without decay for norms and biases, which have fewer than two dimensions."""
    weights, vectors = split(parameters)
    if norm_and_bias:
        return [{"params": list(parameters), "weight_decay": weight_decay}]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def split(parameters: Parameters) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights, and the parameters of norms and biases."""
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    return weights, [parameter for parameter in parameters if parameter.ndim <= 1]


class LARS(torch.optim.Optimizer):
    """SGD with momentum, at a rate of its own for each tensor (You, Gitman and Ginsburg 2017, arXiv 1708.03888).

        trust = eta |w| / (|g| + decay |w|), and 1 where |w| or |g| is zero        (equation 6)
        m <- momentum m + trust (g + decay w)
        w <- w - lr m

    exclude_bias_and_norm: these take plain SGD steps without decay (BYOL, section 3.3; SimCLR, appendix B).
    clip: lr * trust is at most lr, and then does not depend on it otherwise: min(trust, lr), as LARC has it.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        exclude_bias_and_norm: bool,
        clip: bool,
    ) -> None:
        weights, vectors = split(parameters)
        adapted = [*weights, *([] if exclude_bias_and_norm else vectors)]
        plain = vectors if exclude_bias_and_norm else []
        groups = [{"params": adapted, "adapt": True}, {"params": plain, "adapt": False}]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)
        self.trust_coefficient, self.clip = trust_coefficient, clip
        self.found_inf: Tensor | None = None
        self.sizes: dict[tuple[int, ...], Tensor] = {}  # on the device, of each list of tensors that was seen
        for weight in (*adapted, *plain):
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self.update(weights, group)

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """One update of a group, in place, unless it is held back; a few kernels for all of its tensors."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if group["adapt"]:
            trust = self.trust(weights, gradients, group)
            decayed = torch._foreach_mul(weights, group["weight_decay"])
            torch._foreach_add_(decayed, gradients)
            gradients = self.scaled(list(decayed), trust)
        momentum, lr = (weights[0].new_full((), group[name]) for name in ("momentum", "lr"))
        if self.found_inf is not None:
            is_held = self.found_inf > 0
            gradients = self.scaled(gradients, (~is_held).expand(len(weights)))
            momentum, lr = torch.where(is_held, 1.0, momentum), torch.where(is_held, 0.0, lr)
        memories = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(memories, momentum)
        torch._foreach_add_(memories, gradients)
        torch._foreach_sub_(weights, torch._foreach_mul(memories, lr))

    def scaled(self, tensors: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
        """Each tensor times its own factor, of (n,) on the device; where that is False it is 0, whatever it was.

        On a GPU all tensors at once; a CPU is twice as fast by one after the other, in its cache.
        """
        if not factors.is_cuda:
            return [multiplied(factor, tensor) for factor, tensor in zip(factors, tensors, strict=True)]
        flat = torch.cat([tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors])  # in memory's order
        sizes = tuple(tensor.numel() for tensor in tensors)
        if sizes not in self.sizes:
            self.sizes[sizes] = torch.tensor(sizes).to(flat.device)
        each = factors.repeat_interleave(self.sizes[sizes], output_size=len(flat))
        flat = multiplied(each, flat)
        return [part.as_strided(t.shape, t.stride()) for part, t in zip(flat.split(sizes), tensors, strict=True)]

    def trust(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> Tensor:
        """The factor on the rate of each tensor: (n,) on the device."""
        w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
        trust = self.trust_coefficient * w / (g + group["weight_decay"] * w)
        if self.clip:
            trust = (trust / group["lr"]).clamp(max=1)
        return torch.where((w > 0) & (g > 0), trust, 1.0)


def multiplied(factor: Tensor, tensor: Tensor) -> Tensor:
    """factor * tensor; a factor of False gives 0 for NaN and Inf too."""
    return torch.where(factor, tensor, 0.0) if factor.dtype is torch.bool else factor * tensor


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step, counted from 1: linear warm-up, then constant or cosine down to zero.

    The first `switch_steps` of phase 2 have a second linear warm-up, a factor on top of that.
    """

    lr: float
    name: str
    warmup_steps: int
    total_steps: int
    switch_steps: int = 0

    @classmethod
    def of(cls, part: Part, lengths: Lengths, switch_epochs: float = 0.0) -> Schedule:
        """The schedule that stands in an optimizer's config, for a run of these lengths."""
        options = part.options
        warmup_steps, switch_steps = (
            round(epochs * lengths.steps_per_epoch) for epochs in (options["warmup_epochs"], switch_epochs)
        )
        return cls(options["lr"], options["schedule"], warmup_steps, lengths.total_steps, switch_steps)

    def rate(self, step: int, switch_step: int | None = None) -> float:
        """The learning rate of a step; `switch_step` is the first of phase 2, once there is one."""
        if switch_step is None:
            return self.own_rate(step)
        return self.own_rate(step) * min(1.0, (step - switch_step + 1) / (self.switch_steps + 1))

    def own_rate(self, step: int) -> float:
        """The rate without regard to the switch."""
        if step <= self.warmup_steps:
            return self.lr * step / (self.warmup_steps + 1)
        if self.name == "constant":
            return self.lr
        progress = (step - 1 - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, switch_step: int | None = None) -> None:
        """Set the learning rate of a step in all parameter groups."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step, switch_step)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer) -> None:
    """Set an optimizer's memory to zero, in place: moments, momentum, and the count that corrects AdamW's bias."""
    for memory in optimizer.state.values():
        for value in memory.values():
            if isinstance(value, Tensor):
                value.zero_()


def non_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """1.0 when any gradient holds NaN or Inf, else 0.0; a scalar on the device, nothing waits for it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Squares of 1e20 overflow, sums do not. A GPU has a few kernels for all tensors' sizes; a CPU sums values faster.
    is_gpu = gradients[0].is_cuda
    sums = torch._foreach_norm(gradients, ord=1) if is_gpu else [gradient.sum() for gradient in gradients]
    total = torch.stack(sums).sum()
    return (total - total).ne(0).float()  # Inf - Inf and NaN - NaN are NaN, which is not 0
