"""The version of each stage. It is part of every name, so what an older version has made is not reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGES = ("extract", "transport", "train", "probe")
VERSIONS = {"images": 1, "extract": 4, "transport": 3, "train": 2, "probe": 2}  # bump one when its bytes change
MADE_BY = {  # which stage makes the entries of a kind
    "images": "images",
    "features": "extract",
    "targets": "transport",
    "views": "extract",
    "view_targets": "transport",
    "tokens": "extract",
    "token_targets": "transport",
    "baselines": "probe",
}


def is_older(kind: str, spec: Mapping[str, Any]) -> bool:
    """Whether an entry of the cache, or the settings of a run (kind `run`), were made by another version of a stage."""
    stage = "train" if kind == "run" else MADE_BY.get(kind)
    return stage in VERSIONS and "version" in spec and spec["version"] != VERSIONS[stage]
