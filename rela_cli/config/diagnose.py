"""What is wrong with a command line: every mistake at once, with the nearest name that would be right.

Hydra stops at the first wrong override, and its advice ("use +key=...") would not help here. So a command line that
cannot be composed is composed again, override by override.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from rela_cli.config.text import holds_text
from rela_cli.config.trees import Trees, as_dict, checked_config, hydra_message
from rela_cli.errors import ConfigError, did_you_mean

SHOWN_CELLS = 20  # failing cells that are looked into
EXTRAS = {"joblib": "parallel", "submitit_slurm": "slurm", "submitit_local": "slurm", "slurm": "slurm"}

CellOverrides = tuple[str, ...]


def problems_of_cells(trees: Trees, cells: Sequence[CellOverrides]) -> list[str]:
    """Every problem of these cells once, those of single cells with the cell's name."""
    seen: dict[str, CellOverrides] = {}
    bad = 0
    for cell in cells:
        try:
            trees.config(cell)
        except Exception as error:
            bad += 1
            for problem in problems_of(trees, cell) or [hydra_message(error)]:
                seen.setdefault(problem, cell)
        if bad == SHOWN_CELLS:
            break
    return [problem if bad == len(cells) else f"{problem} (cell {' '.join(cell)})" for problem, cell in seen.items()]


def problems_of(trees: Trees, words: Sequence[str]) -> list[str]:
    """What is wrong with each override by itself, then with all the good ones together."""
    try:
        loaded = trees.load(())  # with the good ones so far
    except Exception as error:
        return [hydra_message(error)]
    found: list[str] = []
    good: list[str] = []
    for word in sorted(words, key=lambda word: not trees.options(word.partition("=")[0])):
        try:  # groups come first: a part's keys depend on the part
            loaded = trees.load([*good, word])
        except ConfigError as error:  # our loader's: what a preset says
            found.append(str(error))
        except Exception as error:
            found.append(explain(trees, word, loaded, error))
        else:
            good.append(word)
    try:
        checked_config(*loaded, words)
    except ConfigError as error:
        refused = [word.partition("=")[0] + "=" for word in words if word not in good]  # enough was said of them
        found += [line for line in str(error).splitlines() if not any(key in line for key in refused)]
    return found


def explain(trees: Trees, word: str, loaded: tuple[DictConfig, DictConfig], error: Exception) -> str:
    """What is wrong with an override that Hydra refuses beside the good ones, whose trees are `loaded`."""
    try:
        override = trees.parse([word])[0]
    except OverrideParseException as unreadable:
        return unreadable_word(word, unreadable)
    key, options = override.key_or_group, trees.options(override.key_or_group)
    if not key:
        return f"cannot read {word}: settings are key=value, and the key is missing"
    if override.is_sweep_override():
        one = f"; if it is one text quote it: '{key}=\"{word.partition('=')[2]}\"'" if holds_text(key) else ""
        return f"{word} is several values; to sweep over them say -m: rela train -m {word}{one}"
    if options and not override.is_delete():
        return unknown_option(key, override, options, error)
    tree, node = loaded
    return unknown_key(trees, key, {**as_dict(tree), "hydra": as_dict(node)}) or f"{word}: {hydra_message(error)}"


def unknown_key(trees: Trees, key: str, known: Mapping[str, Any]) -> str:
    """Where the path of a key leaves the tree, with the nearest name there; empty when it does not."""
    here: Any = known
    path: list[str] = []
    for step in key.split("."):
        if not isinstance(here, Mapping):
            return f"unknown key {key}: {'.'.join(path)} is a single value"
        if step not in here:
            return unknown_step(key, path, step, here) + parts_with(trees, path, step)
        here = here[step]
        path.append(step)
    return ""


def parts_with(trees: Trees, path: Sequence[str], step: str) -> str:
    """Which other parts of the same group have this key."""
    if len(path) != 1 or path[0] == "hydra":
        return ""
    having = []
    for option in trees.options(path[0]):
        with suppress(ConfigError):  # a yaml of the user's that cannot be read says nothing here
            having += [f"{path[0]}={option}"] if step in trees.keys(path[0], option) else []
    return f"; {', '.join(having)} has it" if having else ""


def unreadable_word(word: str, error: Exception) -> str:
    """A word that is no override in any grammar."""
    if "=" not in word and not word.startswith("~"):
        if Path(word).expanduser().is_dir():
            return f"cannot read {word}: for the images in this folder say dataset=image_folder dataset.root={word}"
        return f"cannot read {word}: settings are key=value; to see what there is: rela train --help"
    return f"cannot read {word} ({hydra_message(error)}); quote a value with special characters: 'key=\"a, b\"'"


def unknown_option(group: str, override: Override, options: Sequence[str], error: Exception) -> str:
    """A value that is not the name of one of the group's yamls, or of one with which nothing can be composed."""
    value = override.value()
    if group == "logger" and isinstance(value, list):  # the one group that takes several names
        value = next(name for name in value if name not in options)
    if not isinstance(value, str):
        return f"{group} takes one name, not {'null' if value is None else value}. Allowed: {', '.join(options)}"
    if group == "hydra/launcher" and value in EXTRAS:
        return f"{group}={value} is not installed; it comes with: pip install 'rela-cli[{EXTRAS[value]}]'"
    if value in options:
        return f"{override.input_line}: {hydra_message(error)}"
    return f"unknown {group} {value}{did_you_mean(value, options)}{allowed_names(options)}"


def unknown_step(key: str, path: Sequence[str], step: str, here: Mapping[str, Any]) -> str:
    """A key that is not there, with the nearest one and those that are."""
    names = [str(name) for name in here if name not in ("_target_", "name")] + ([] if path else ["experiment", "sweep"])
    inside = [] if path else [f"{group}.{step}" for group, part in here.items() if holds(part, step)]
    close = (
        f", did you mean {' or '.join(inside)}?" if inside else did_you_mean(step, [n for n in names if n != "hydra"])
    )
    owner = f" for {path[0]}={here['name']}" if len(path) == 1 and "name" in here else ""
    prefix = ".".join(path) + "." if path else ""
    close = close if inside else close.replace("did you mean ", f"did you mean {prefix}")
    return f"unknown key {key}{owner}{close}{allowed_names(names) if path or not close else ''}"


def holds(part: object, key: str) -> bool:
    """Whether a part of the config has a key that people may set."""
    return isinstance(part, Mapping) and key in part and key not in ("_target_", "name")


def allowed_names(names: Sequence[str]) -> str:
    """The names in brackets, for the end of a message."""
    return f" (allowed: {', '.join(names)})" if names else " (it has no keys)"
