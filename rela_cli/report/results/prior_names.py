"""What a prior is called: its part's name, or for a run of one's own that run's; or what the reader says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.report.results import run_files
from rela_cli.store.files import section
from rela_cli.store.names import called, run_called

OWN_RUN = "rela_run"
UNTRAINED_SUFFIX = " (random"  # how the name of an untrained prior goes on


def part_name(result: Mapping[str, Any], group: str) -> str:
    """What a result's data set, learner or prior is called; older results say only what they were made with."""
    tree, told = section(result["settings"], group), section(dict(result), "called").get(group)
    bare, _, untrained = str(tree.get("name", result[group])).partition(UNTRAINED_SUFFIX)
    name = told if isinstance(told, str) else called(group, bare, tree)
    return name + (UNTRAINED_SUFFIX + untrained if untrained else "")


def prior_names(results: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """The prior of each result, as tables and plots show it; `names` are the reader's own, by those that we give.

    Runs of one's own that hold the same weights are called the same, whatever their folders are called.

    Raises:
        ConfigError: no run has such a prior, or two priors would be called the same.
    """
    own: dict[str, str] = {}
    for result in results:
        if result["prior"] == OWN_RUN and (folder := run_behind(result)):
            own.setdefault(prior_identity(result), run_called(folder))
    ours = [
        own.get(prior_identity(result), OWN_RUN) if result["prior"] == OWN_RUN else part_name(result, "prior")
        for result in results
    ]
    ours = told_apart(ours, results)
    check_names({name for name in ours if name != "none"}, names)
    return [names.get(name, name) for name in ours]


def told_apart(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Priors of one name that were loaded from several files get the names of their files, as far as they are known."""
    files: dict[str, set[str]] = {}
    for name, result in zip(names, results, strict=True):
        files.setdefault(name, set()).update(filter(None, [weights_file_name(result)]))
    return [
        f"{name} {weights_file_name(result)}".strip() if len(files[name]) > 1 else name
        for name, result in zip(names, results, strict=True)
    ]


def weights_file_name(result: Mapping[str, Any]) -> str:
    """The name of the file that the prior was loaded from; empty where there is none, or it is not known."""
    return str(section(dict(result), "called").get("file") or "")


def check_names(known: set[str], names: Mapping[str, str]) -> None:
    """Raises what `prior_names` says."""
    for name in names.keys() - known:
        there = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            f"--name={name}={names[name]}: no run here has such a prior{did_you_mean(name, known)} ({there})"
        )
    shown = [names.get(name, name) for name in known]
    if twice := [name for name in sorted(set(shown)) if shown.count(name) > 1]:
        raise ConfigError(f"--name: two priors would be called {twice[0]}; say another name")


def prior_identity(result: Mapping[str, Any]) -> str:
    """What a prior is, weights by content: the same for the same prior."""
    return json.dumps(result["settings"].get("prior"), sort_keys=True)


def run_behind(result: Mapping[str, Any]) -> str:
    """The folder of the run that is the prior, as far as it is known."""
    return str(result.get("prior_run") or run_in_config(Path(result.get("path", ""))))


def run_in_config(folder: Path) -> str:
    """`prior.run` of a run whose result does not name it; empty where there is none, or but a link that moves on."""
    named = str(section(run_files.read_config(folder), "prior").get("run") or "")
    return "" if Path(named).name == "latest" else named


def prior_and_name(text: str) -> tuple[str, str]:
    """A type for argparse: PRIOR=NAME."""
    prior, equals, name = text.rpartition("=")
    if not (prior and equals and name.strip()):
        raise ConfigError(f"--name={text} must be PRIOR=NAME, such as --name='cifar10 byol 61d4788a=CF10-T'")
    return prior, name.strip()
