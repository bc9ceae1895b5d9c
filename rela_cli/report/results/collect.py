"""Find the result.json files below some paths and read them."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rela_cli.errors import MissingError
from rela_cli.report.results.older_settings import settings_of_today
from rela_cli.store.disk import OUTPUTS
from rela_cli.store.files import load_json, reason_of
from rela_cli.store.sealed import BY_HAND, SEAL, Damaged
from rela_cli.terminal import few, plural, readable

RESULT_TYPES = {
    "status": str,
    "dataset": str,
    "prior": str,
    "learner": str,
    "method": str,
    "seed": int,
    "settings": dict,
}
NUMBERS = ("budget", "samples_seen", "train_samples", "steps", "switch_step", "target_dim", "peak_memory_bytes")
ACCOUNTS = ("seconds", "flops")  # numbers by stage
SET_ASIDE = re.compile(r"\.old-\d+$")  # runs that resume=never has set aside; shown only when they are named


def collect(paths: Sequence[Path] = (OUTPUTS,), problems: list[str] | None = None) -> list[dict[str, Any]]:
    """The results at `paths`: outputs folders, folders of runs, run folders or result.json files.

    Every result gets the key `path`, its run folder. A run met twice (the `latest` link, a copied folder) is
    returned once. What could not be read goes to `problems`, one line each, or to the log when that is None.

    Raises:
        MissingError: when there is no result at all.
    """
    found: list[str] = []
    files = dict.fromkeys(file.resolve() for file in _files(paths, found))
    results = _distinct((result for file in files if (result := _read_result(file, found))), found)
    if not results:
        where = ", ".join(map(str, paths)) or "nowhere"
        raise MissingError("\n".join([f"no result.json found in {where}; `rela train` makes one", *found]))
    if old := sum(not result.pop(SEAL) for result in results):
        found.append(f"{plural(old, 'result')} by older versions, without a hash: damage in them is not noticed")
    if problems is None:
        for problem in found:
            logging.getLogger(__name__).warning(problem)
    else:
        problems += found
    return results


def _files(paths: Sequence[Path], problems: list[str]) -> Iterator[Path]:
    """The result.json files that the paths stand for, in a stable order."""
    for path in paths:
        if not path.exists():
            problems.append(f"{path}: no such file or folder")
        elif path.is_file():
            yield path
        else:
            yield from (file for folder in _run_folders(path) if (file := folder / "result.json").is_file())
    if lacking := unfinished(paths):
        names = few([folder.name for folder in lacking], 5)
        problems.append(f"no result.json yet in {plural(len(lacking), 'run folder')}: {names}")


def _run_folders(path: Path) -> list[Path]:
    """`path` itself if it is a run, else the runs in it; an outputs folder keeps them in `runs`."""
    if _is_run(path):
        return [path]
    runs = path / "runs" if (path / "runs").is_dir() else path
    return [folder for folder in sorted(runs.iterdir()) if _is_run(folder) and not SET_ASIDE.search(folder.name)]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("result.json", "manifest.json", "config.yaml"))


def _read_result(file: Path, problems: list[str]) -> dict[str, Any] | None:
    """One result, or None and a problem that names the file."""
    try:
        result, has_seal = load_json(file)
    except (OSError, Damaged) as error:
        problems.append(f"{file}: left out, it cannot be used: {reason_of(error)}; {BY_HAND}")
        return None
    if lacking := _lacking(result):
        problems.append(f"{file}: is not a result (no proper {', '.join(lacking)})")
        return None
    settings = settings_of_today(result["settings"])
    return {**readable({**result, "settings": settings}), "path": str(file.parent), SEAL: has_seal}


def _lacking(result: Mapping[str, Any]) -> list[str]:
    """The keys whose values have no place in a table: not there, or of another kind."""
    lacking = [key for key, kind in RESULT_TYPES.items() if not isinstance(result.get(key), kind)]
    lacking += [key for key in NUMBERS if not _is_number(result.get(key, 0))]
    lacking += [key for key in ACCOUNTS if not _is_mapping(result.get(key), _is_number)]
    lacking += ["probe"] * (not _is_mapping(result.get("probe"), _is_score))
    lacking += ["baselines"] * (not _is_mapping(result.get("baselines"), lambda of: _is_mapping(of, _is_score)))
    lacking += ["budget"] * (result.get("budget") is None)
    if not lacking:
        groups = ("dataset", "learner", "method", *(["prior"] if result["prior"] != "none" else []))
        lacking = [f"settings.{group}" for group in groups if not isinstance(result["settings"].get(group), dict)]
    return lacking


def _is_number(value: Any) -> bool:
    """Finite, or not known."""
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _is_mapping(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """A mapping whose values are right, or nothing."""
    return not value or (isinstance(value, dict) and all(map(is_right, value.values())))


def _is_score(value: Any) -> bool:
    """A number of a probe, which may not be finite, and the network it is of."""
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("top1", 0), int | float | None) and isinstance(value.get("network"), str | None)


def _distinct(results: Iterable[dict[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    """One result a run: averaging a run with its own copy would feign a second seed. A finished one wins."""
    kept: dict[str, dict[str, Any]] = {}
    for result in results:
        identity = json.dumps([result["settings"], result["seed"], result["budget"]], sort_keys=True)
        other = kept.get(identity)
        if other is None or (other["status"] != "finished" and result["status"] == "finished"):
            kept[identity] = result
        if other is not None:
            paths = f"{other['path']} and {result['path']}"
            problems.append(f"the same run twice: {paths}; {kept[identity]['path']} counts")
    return list(kept.values())


def unfinished(paths: Sequence[Path]) -> list[Path]:
    """The run folders at `paths` that have no result.json yet, each once."""
    folders = (folder.resolve() for path in paths if path.is_dir() for folder in _run_folders(path))
    return [folder for folder in dict.fromkeys(folders) if not (folder / "result.json").is_file()]
