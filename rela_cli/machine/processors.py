"""How many cores and GPUs this process may use."""

from __future__ import annotations

import os
import subprocess


def gpus() -> int:
    """GPUs that nvidia-smi sees; torch is not imported for it."""
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(found.stdout.splitlines()) if found.returncode == 0 else 0


def visible_gpus() -> tuple[str, ...]:
    """Their names as CUDA_VISIBLE_DEVICES has them: those that it allows, else all."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1"))
    return tuple(map(str, range(gpus())))


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
