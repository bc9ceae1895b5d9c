"""How a network computes: bf16 where a GPU is fast at it, the heads and losses around it in fp32; and repeatably.

fp32 is fp32 on every device. A GPU's TF32, which keeps 10 of 23 bits of each factor, is used where a name says tf32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.config.runtime import Runtime
from rela_cli.errors import ConfigError
from rela_cli.machine.half_weights import HalfWeights


def trains_in(runtime: Runtime, device: torch.device) -> str:
    """What backbones compute in when they are trained: bf16, tf32 or fp32.

    Raises:
        ConfigError: tf32 on a CPU.
    """
    if runtime.precision == "tf32":
        ensure_tf32("precision", device)
        return "tf32"
    return "bf16" if uses_bf16(runtime, device) else "fp32"


def ensure_tf32(key: str, device: torch.device) -> None:
    """Refuse what only a GPU can do, so that a name says how numbers were made.

    Raises:
        ConfigError: this is a CPU.
    """
    if device.type != "cuda":
        raise ConfigError(f"runtime.{key}=tf32 needs a GPU, and this runs on the CPU; say runtime.{key}=fp32")


@contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Inside, products of fp32 tensors on a GPU may be TF32, or may not."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = is_allowed
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def uses_bf16(runtime: Runtime, device: torch.device) -> bool:
    """Whether backbones compute in bf16. auto: on GPUs that have it; a CPU without it is slower by it."""
    if runtime.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return runtime.precision == "bf16"


def extracts_in(runtime: Runtime) -> torch.dtype:
    """What a prior computes in when features are extracted: what the config says, on any device.

    There is no auto: other bits are other features, and what they are called must not depend on the machine.
    """
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return half.get(runtime.extract_precision, torch.float32)


def extracting(network: nn.Module, runtime: Runtime, device: torch.device) -> None:
    """Let a prior compute in what `runtime.extract_precision` says.

    Raises:
        ConfigError: tf32 on a CPU.
    """
    if runtime.extract_precision == "tf32":
        ensure_tf32("extract_precision", device)
        in_tf32(network)
    elif (dtype := extracts_in(runtime)) != torch.float32:
        in_half(network, device, dtype)


def in_tf32(network: nn.Module) -> None:
    """Let a network's forward pass multiply in TF32."""
    forward = network.forward

    def rounded(*given: Any) -> Any:
        with tf32(True):
            return forward(*given)

    network.forward = rounded  # type: ignore[method-assign]


def in_half(
    network: nn.Module, device: torch.device, dtype: torch.dtype = torch.bfloat16, casts_at_once: bool = False
) -> None:
    """Let a network compute under autocast and give float32: weights stay as they are, and so do files of them.

    casts_at_once: its weights by one kernel, not by one for each. The numbers are the same.
    """
    forward, weights = network.forward, HalfWeights(network, dtype)

    def half(x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(device.type, dtype), weights.lent() if casts_at_once else nullcontext():
            return forward(x, *rest).float()  # type: ignore[no-any-return]

    network.forward = half  # type: ignore[method-assign]


def set_backends(runtime: Runtime) -> None:
    """True fp32, and the fastest kernels for these shapes; or, deterministic, the same bits each time."""
    if torch.are_deterministic_algorithms_enabled() != runtime.deterministic:  # saying it imports the compiler: 1 s
        torch.use_deterministic_algorithms(runtime.deterministic)
    torch.backends.cudnn.deterministic = runtime.deterministic
    torch.backends.cudnn.benchmark = not runtime.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
