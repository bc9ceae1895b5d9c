"""How many cores and GPUs this process may use."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def gpus() -> int:
    """GPUs that nvidia-smi sees; torch is not imported for it."""
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(found.stdout.splitlines()) if found.returncode == 0 else 0


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, by the names that it uses; all GPUs where it is not set."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1"))
    return tuple(map(str, range(gpus())))


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def each_in_threads(
    work: Callable[[T], R], items: Iterable[T], ahead: int, threads: int | None = None
) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, in order; threads are at most `ahead` items ahead of the caller."""
    under_way: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            under_way.append((item, pool.submit(work, item)))
            if len(under_way) >= ahead:
                done, result = under_way.popleft()
                yield done, result.result()
        yield from ((item, result.result()) for item, result in under_way)
