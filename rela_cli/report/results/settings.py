"""Settings of runs: how two runs differ, and how a difference is written."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VARIANT = ("prior", "transport", "matching", "switch", "extract")  # settings that only ReLA has: they make columns

TARGET_PARTS = ("prior", "transport")  # those that the prior alone depends on

NAMED_PARTS = ("dataset", "learner", "method")

LIVE_KEY, LIVE = "matching.targets", "live"  # the prior looks at every view: the head of a column says it in a word

VIEWS_KEY = "extract.views"  # how many light views the prior has looked at: the head says that in words, too

PRESET = "experiment=best"  # how the head of a column calls these settings, which are that preset's

PRESET_SETTINGS = {
    "matching": "geometric",
    "switch": "never",
    "transport": "whitening",
    "transport.dims": "twice",
    "transport.power": "0.5",
}

OWN_COLUMNS = (*NAMED_PARTS, "prior")  # names that have a place of their own in every table

Settings = tuple[tuple[str, str], ...]  # flat, sorted, written out: comparable and hashable


# ------------------------------------------------------------------------------------------------- settings


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as command-line keys and values: {"switch": {"name": "fixed", "at": 0.5}} becomes
    {"switch": "fixed", "switch.at": "0.5"}. Members of an ensemble are numbered: prior.members.0.width."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            flat |= flatten(value, path)
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                flat |= flatten(item, f"{path}.{number}")
        else:
            flat[prefix if prefix and key == "name" else path] = _written(value)
    return flat


def _written(value: Any) -> str:
    """A value as one would type it; 30 and 30.0, 0.3 and 0.1 + 0.2 are the same."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def differing(many: Iterable[Settings]) -> set[str]:
    """The keys whose values differ, an option only among settings with the same part: two optimizers have
    different options anyway, their names say so."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    flats = [dict(settings) for settings in many]
    keys = {key for flat in flats for key in flat}
    for flat in flats:
        for key in keys:
            owner = flat.get(key.partition(".")[0], "") if "." in key else ""
            values[key, owner].add(flat.get(key, "unset"))
    return {key for (key, _), seen in values.items() if len(seen) > 1}


def settings_text(settings: Settings, keys: set[str], separator: str = " ") -> str:
    """The settings among `keys` as one would type them, but for those with a place of their own."""
    return separator.join(f"{k}={v}" for k, v in settings if k in keys and k not in OWN_COLUMNS)


def is_preset(settings: Settings, keys: set[str]) -> bool:
    """Whether these are the settings of `experiment=best`, and more than one of them is unusual among the columns."""
    return PRESET_SETTINGS.items() <= dict(settings).items() and len(keys & PRESET_SETTINGS.keys()) > 1


def as_live(variant: Settings) -> Settings:
    """The settings of a prior's column with its targets live."""
    return tuple(sorted({**dict(variant), LIVE_KEY: LIVE}.items()))


def part_of(settings: Iterable[tuple[str, str]], groups: Sequence[str], inside: bool = True) -> Settings:
    """The settings of some groups, or of all others."""
    return tuple(sorted((k, v) for k, v in settings if (k.partition(".")[0] in groups) == inside))


def natural_order(settings: Settings, keys: set[str]) -> list[tuple[str, float, str]]:
    """Sorts epochs=60 before epochs=100."""
    return [(key, _number(value), value) for key, value in settings if key in keys]


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(number) else number
