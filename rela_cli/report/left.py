"""What a run has left beside result.json: curves, traces, spectra, manifests. Whatever is not there is empty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rela_cli.artifacts import read_json
from rela_cli.terminal import readable

Line = dict[str, Any]


def lines(path: Path) -> list[Line]:
    """The objects of a JSONL file; a last line that a running process has not finished is left out."""
    return list(_lines(path)) if path.is_file() else []


def _lines(path: Path) -> Iterator[Line]:
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def manifest(folder: Path) -> Mapping[str, Any]:
    """The run's manifest: status, command, inputs, versions."""
    facts: Mapping[str, Any] = readable(read_json(folder / "manifest.json") or {})
    return facts


def cached(folder: Path, kind: str) -> Path | None:
    """The cache entry that a run was made from ("images", "features" or "targets"), if it is still there."""
    name = (manifest(folder).get("inputs") or {}).get(kind)
    for cache in caches(folder):
        if name and (cache / kind / name / "manifest.json").is_file():
            return cache / kind / name
    return None


def caches(folder: Path) -> Iterator[Path]:
    """Where the cache of a run may be: beside its folder of runs, or where its config says."""
    import yaml

    yield folder.resolve().parent.parent / "cache"
    try:
        tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        yield Path(tree["paths"]["outputs"]).expanduser() / "cache"
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return


def spectrum(folder: Path) -> list[float]:
    """Share of the features' variance in each component of the transport, largest first; of PCA's family only."""
    from safetensors import SafetensorError, safe_open

    entry = cached(folder, "targets")
    if entry is None:
        return []
    try:
        with safe_open(entry / "map.safetensors", framework="numpy") as file:
            values = file.get_tensor("eigenvalues") if "eigenvalues" in file.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return []
    return [] if values is None or not values.sum() > 0 else [float(v) for v in values / values.sum()]
