"""How much memory this process holds, and how much more it can take before the kernel ends it. Needs no torch."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

NO_LIMIT_BYTES = 1 << 60  # bytes; what a cgroup of version 1 calls no limit is beyond that

STATUS = Path("/proc/self/status")


def held() -> int:
    """Bytes of its own that this process holds now; 0 where the system does not say (Linux does).

    Pages of files, such as libraries and mapped features, do not count: the kernel takes them back when it needs them,
    and how many of them it keeps differs from machine to machine.
    """
    return status_field(STATUS, "RssAnon") + status_field(STATUS, "RssShmem")


def peak() -> int:
    """The most bytes of its own that this process has held; with its pages of files where the system does not say.

    On Linux it is an estimate: the kernel keeps the peak of all pages, and of file pages only how many there are now.
    `ru_maxrss` is not used there, because it includes the process that started this one.
    """
    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return max(held(), (status_field(STATUS, "VmHWM") or counted) - status_field(STATUS, "RssFile"))


def give_back() -> None:
    """Let the C library return to the system what has been freed: glibc keeps it for what comes next.

    Between stages it has no use: what one stage took would count on top of what the next one takes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; other libraries have none
    if trim is not None:
        trim(0)


def free_unused() -> None:
    """Give back what torch holds of the GPU and does not use."""
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def free(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken now, swap included, within this process' cgroups; None where the system does not say.

    `root` is where the folders proc and sys are.
    """
    memory = root / "proc/meminfo"
    if not memory.exists():
        return None
    return min((status_field(memory, "MemAvailable") + status_field(memory, "SwapFree"), *left_in_groups(root)))


def left_in_groups(root: Path) -> Iterator[int]:
    """What each cgroup that has a limit still leaves; files that the kernel has cached can go."""
    for folder in groups(root):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most = number_in(folder / limit)
            if most is not None and most < NO_LIMIT_BYTES:
                yield max(0, most - (number_in(folder / used) or 0) + status_field(folder / "memory.stat", cached))


def groups(root: Path) -> Iterator[Path]:
    """The folders of this process' cgroups that may limit memory, and of those above them (versions 1 and 2)."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        own = top / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def number_in(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def status_field(path: Path, name: str) -> int:
    """The bytes behind a name in a file of the kernel's; 0 where it is not there."""
    try:
        found = re.search(rf"^{name}:?\s+(\d+)( kB)?$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * (1024 if found[2] else 1) if found else 0
