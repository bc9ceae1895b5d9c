"""How a network computes: bf16 where a GPU is fast at it, the heads and losses around it in fp32; and repeatably."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.config.schema import Runtime


def uses_bf16(runtime: Runtime, device: torch.device) -> bool:
    """Whether backbones compute in bf16. auto: on GPUs that have it; a CPU without it is slower by it."""
    if runtime.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return runtime.precision == "bf16"


def extracts_in(runtime: Runtime) -> torch.dtype:
    """What a prior computes in when features are extracted: what the config says, on any device.

    There is no auto: other bits are other features, and what they are called must not depend on the machine.
    """
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[runtime.extract_precision]


def in_half(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    """Let a network compute under autocast and give float32: weights stay as they are, and so do files of them."""
    forward = network.forward

    def half(x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(device.type, dtype):
            return forward(x, *rest).float()  # type: ignore[no-any-return]

    network.forward = half  # type: ignore[method-assign]


def set_backends(runtime: Runtime) -> None:
    """TF32 for what stays in fp32, the fastest kernels for these shapes; or, deterministic, the same bits each time."""
    if torch.are_deterministic_algorithms_enabled() != runtime.deterministic:  # saying it imports the compiler: 1 s
        torch.use_deterministic_algorithms(runtime.deterministic)
    torch.backends.cudnn.deterministic = runtime.deterministic
    torch.backends.cudnn.benchmark = not runtime.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
