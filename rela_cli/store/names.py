"""What a model and a data set are called: by their own names where the part is only a loader of them.

`learner=timm learner.model=convnext_nano` is convnext_nano, a folder of images is its last name. Names are for people:
no hash has them, and a run is found by its hash whatever it was called before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOADERS: dict[str, dict[str, tuple[str, ...]]] = {  # group, loader: the keys that name what it loads, first one first
    "dataset": {
        "image_folder": ("root",),
        "packed": ("root",),
        "segmentation": ("root",),
        "parquet": ("hub", "root"),
        "hf": ("hub", "root"),
        "webdataset": ("root",),
        "litdata": ("root",),
        "torchvision": ("dataset",),
    },
    "prior": {
        "timm": ("model",),
        "torchvision": ("model",),
        "open_clip": ("model",),
        "checkpoint": ("model",),
        "exported": ("weights",),
        "onnx": ("weights",),
    },
    "learner": {"timm": ("model",), "torchvision": ("model",)},
}
PATH_KEYS = ("root", "weights")  # keys that hold a path or an address
DIGEST = re.compile(r"[0-9a-f]{64}")  # what a result has of weights
FOLDER = re.compile(r"([^-]+)-.+-([^-]+)-b[^-]+-s\d+-([0-9a-f]{8})")  # as pipeline/run.py names them
LONGEST_NAME = 40  # characters of one name in a folder's name


def called(group: str, name: str, options: Mapping[str, Any]) -> str:
    """The name of what a part loads, or the part's own; `options` are its keys, as in a config or in a result."""
    members = options.get("members") if group == "prior" and name == "ensemble" else None
    if isinstance(members, list | tuple):
        return "+".join(called(group, str(member["name"]), member) for member in members)
    for key in LOADERS.get(group, {}).get(name, ()):
        value = str(options.get(key) or "")
        found = last_name(value) if key in PATH_KEYS else value.rpartition(":")[2].rpartition("/")[2]
        if found and not DIGEST.fullmatch(value):
            return Path(found).stem if key == "weights" else found
    return name


def last_name(place: str) -> str:
    """The last name of a path or of an address; a relative path is taken from the working directory."""
    if "://" in place:
        return place.rstrip("/").rpartition("/")[2]
    return os.path.basename(os.path.abspath(os.path.expanduser(place))) if place else ""


def run_called(folder: str) -> str:
    """A run in few words: `cifar10 byol 61d4788a`; of a folder that was named by hand, the name."""
    name = Path(folder).name
    found = FOLDER.fullmatch(name)
    return " ".join(found.groups()) if found else name


def slug(name: str) -> str:
    """A name as a part of a folder's name: letters, digits, dots and underscores."""
    return re.sub(r"[^\w.]+", "_", name).strip("._")[:LONGEST_NAME] or "unnamed"
