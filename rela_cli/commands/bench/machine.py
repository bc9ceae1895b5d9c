"""What the figures were measured with and on, and how busy the machine was."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

from rela_cli import __version__
from rela_cli.machine.processors import cores

PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "scikit-learn"),
    *("lightly", "kornia", "simplejpeg", "timm", "open_clip_torch"),
)


def all_versions() -> dict[str, str]:
    """Ours, Python's, and those of every package that had a part in it."""
    found = {"rela": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return {**found, "system": f"{platform.system()} {platform.machine()}", "cpu": cpu_name(), "gpu": gpu_name()}


def cpu_name() -> str:
    """Its name and the cores that we may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {len(cores())} cores"


def gpu_name() -> str:
    """The GPU that torch sees."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def machine_load() -> dict[str, object]:
    """The time, and the mean number of processes that wanted a core in the last 1, 5 and 15 minutes."""
    return {"time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "average": [round(x, 2) for x in os.getloadavg()]}
