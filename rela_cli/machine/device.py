"""The device of a run: which one it is, its name, its memory, and the FLOPs of some work."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rela_cli.config.runtime import Runtime
from rela_cli.distributed import ranks
from rela_cli.errors import ConfigError
from rela_cli.machine import memory
from rela_cli.machine.precision import set_backends
from rela_cli.store.notices import warn_once
from rela_cli.terminal import as_size


def pick_device(runtime: Runtime) -> torch.device:
    """The device to use; sets the number of CPU threads as well.

    Raises:
        ConfigError: cuda was asked for and is not there.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but torch sees no GPU here; say runtime.device=auto")
    set_backends(runtime)
    return ranks.own_device("cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu")


def versions() -> dict[str, str]:
    """The versions and the machine that the numbers were made with."""
    import torchvision

    from rela_cli import __version__

    return {
        "rela": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def device_name(kind: str) -> str:
    """What a device of a kind, cpu or cuda, is called."""
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def count_flops(work: Callable[[], Any]) -> int:
    """Multiplications and additions of one call (matrix products and convolutions), by running it once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak since `restart_peak_memory`, or the most that the process itself has held on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else memory.peak()


_reserved_before = 0  # bytes, the most that torch held of the GPU before its peak was last forgotten


def restart_peak_memory(device: torch.device) -> None:
    """Forget the GPU's peak of what this process did before."""
    global _reserved_before
    if device.type == "cuda":
        _reserved_before = max(_reserved_before, torch.cuda.max_memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)


def gpu_memory() -> tuple[int, int]:
    """Of this process' GPU, bytes: the most that torch ever held, and what it could hold now with all that is free.

    What torch holds and does not use goes back to the GPU.
    """
    torch.cuda.empty_cache()
    peak = max(_reserved_before, torch.cuda.max_memory_reserved())
    return int(peak), int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())


def with_room(device: torch.device, size: int, what: str, is_shared: bool = True) -> torch.device:
    """The GPU if `size` bytes fit on it, else the CPU, with a warning. `is_shared`: all ranks get the same answer."""
    if device.type == "cpu":
        return device
    torch.cuda.empty_cache()
    free = int(torch.cuda.mem_get_info(device)[0])
    if all(ranks.gather_objects(size <= free)) if is_shared else size <= free:
        return device
    warn_once(f"{what} would take {as_size(size)}, and the GPU has {as_size(free)} free: it is done on the CPU")
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Let the device finish, so that a clock read on the host means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
