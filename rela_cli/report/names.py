"""What a prior is called: its part's name, or for a run of one's own that run's; or what the reader says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rela_cli.artifacts import section
from rela_cli.errors import ConfigError, nearest
from rela_cli.report import left

OWN_RUN = "rela_run"
FOLDER = re.compile(r"([^-]+)-.+-([^-]+)-b[^-]+-s\d+-([0-9a-f]{8})")  # as runs.Run names them


def called(folder: str) -> str:
    """A run in few words: `cifar10 byol 61d4788a`; of a folder that was named by hand, the name."""
    name = Path(folder).name
    found = FOLDER.fullmatch(name)
    return " ".join(found.groups()) if found else name


def prior_names(results: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """The prior of each result, as tables and plots show it; `names` are the reader's own, by those that we give.

    Runs of one's own that hold the same weights are called the same, whatever their folders are called.

    Raises:
        ConfigError: no run has such a prior, or two priors would be called the same.
    """
    own: dict[str, str] = {}
    for result in results:
        if result["prior"] == OWN_RUN and (folder := run_behind(result)):
            own.setdefault(contents(result), called(folder))
    ours = [own.get(contents(result), OWN_RUN) if result["prior"] == OWN_RUN else result["prior"] for result in results]
    check({name for name in ours if name != "none"}, names)
    return [names.get(name, name) for name in ours]


def check(known: set[str], names: Mapping[str, str]) -> None:
    """Raises what `prior_names` says."""
    for name in names.keys() - known:
        there = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"--name={name}={names[name]}: no run here has such a prior{nearest(name, known)} ({there})")
    shown = [names.get(name, name) for name in known]
    if twice := [name for name in sorted(set(shown)) if shown.count(name) > 1]:
        raise ConfigError(f"--name: two priors would be called {twice[0]}; say another name")


def contents(result: Mapping[str, Any]) -> str:
    """What a prior is, weights by content: the same for the same prior."""
    return json.dumps(result["settings"].get("prior"), sort_keys=True)


def run_behind(result: Mapping[str, Any]) -> str:
    """The folder of the run that is the prior, as far as it is known."""
    return str(result.get("prior_run") or run_in_config(Path(result.get("path", ""))))


def run_in_config(folder: Path) -> str:
    """`prior.run` of a run whose result does not name it; empty where there is none, or but a link that moves on."""
    named = str(section(left.config(folder), "prior").get("run") or "")
    return "" if Path(named).name == "latest" else named


def pair(text: str) -> tuple[str, str]:
    """A type for argparse: PRIOR=NAME."""
    prior, equals, name = text.rpartition("=")
    if not (prior and equals and name.strip()):
        raise ConfigError(f"--name={text} must be PRIOR=NAME, such as --name='cifar10 byol 61d4788a=CF10-T'")
    return prior, name.strip()
