"""The files of a run beside result.json: curves, traces, spectra, manifests. A missing file gives an empty value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rela_cli.store.files import read_json, reason_of, section
from rela_cli.store.notices import warn_once
from rela_cli.store.sealed import Damaged, parsed, parsed_yaml
from rela_cli.terminal import readable

LogLine = dict[str, Any]
LINE_KEYS = {"metrics.jsonl": ("step",), "switch.jsonl": ("step", "loss", "fast", "slow", "rho")}


def read_jsonl(path: Path) -> list[LogLine]:
    """The records of a JSONL file. Damaged lines are left out with a warning; an unfinished last line is left out."""
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        warn_once(f"{path}: {reason_of(error)}; plots go without it")
        return []
    found = [record for text in whole if (record := _parsed_line(text, path.name)) is not None]
    if len(found) < len(whole):
        warn_once(f"{path}: {len(whole) - len(found)} of {len(whole)} lines are damaged and left out of plots")
    unfinished = _parsed_line(last, path.name)
    return found if unfinished is None else [*found, unfinished]


def _parsed_line(text: bytes, name: str) -> LogLine | None:
    """A line as a record; None unless all values are numbers, words or null and the keys that plots need are there."""
    try:
        line = parsed(text)
    except Damaged:
        return None
    if not isinstance(line, dict) or not all(is_number(line.get(key)) for key in LINE_KEYS.get(name, ())):
        return None
    return line if all(value is None or isinstance(value, str) or is_number(value) for value in line.values()) else None


def is_number(value: Any) -> bool:
    """Whether a value is a number. NaN counts: a run may have produced it."""
    return isinstance(value, int | float)


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The run's manifest: status, command, inputs, versions."""
    facts: Mapping[str, Any] = readable(read_json(folder / "manifest.json") or {})
    return facts


def cached(folder: Path, kind: str) -> Path | None:
    """The cache entry that a run was made from ("images", "features" or "targets"), if it is still there."""
    name = section(read_manifest(folder), "inputs").get(kind)
    for cache in caches(folder):
        if isinstance(name, str) and (cache / kind / name / "manifest.json").is_file():
            return cache / kind / name
    return None


def caches(folder: Path) -> Iterator[Path]:
    """Where the cache of a run may be: beside its folder of runs, or where its config says."""
    yield folder.resolve().parent.parent / "cache"
    outputs = section(read_config(folder), "paths").get("outputs")
    if isinstance(outputs, str):
        yield Path(outputs).expanduser() / "cache"


def read_config(folder: Path) -> LogLine:
    """The run's config.yaml; empty, with a warning, when it cannot be read."""
    path = folder / "config.yaml"
    try:
        return parsed_yaml(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        warn_once(f"{path} is damaged: {reason_of(error)}")
        return {}


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
