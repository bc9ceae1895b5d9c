"""From a finished run, or a prior, and a few words to the config that judges it on a dataset.

The words are those of a command line: dataset=digits dataset.root=FOLDER probe.protocols=[lbfgs]. Without dataset= it
is the run's own dataset. Images are shown at the size that the run was trained at, unless dataset.image_size says
another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rela_cli.config.compose import Composer
from rela_cli.config.overrides import CommandLine
from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError
from rela_cli.pipeline.judging import Judged, Judging
from rela_cli.pipeline.run import Run
from rela_cli.store.beside import PRIORS
from rela_cli.store.files import fingerprint, section
from rela_cli.store.names import slug
from rela_cli.weights import locate, run_folder

NO_STEP = "batch_size=2"  # nothing is trained, so a batch has to fit into any dataset
OF_RUN = ("dataset", "probe", "runtime", "paths", "allow")  # what may be said beside the name of a run
OF_ITS_NETWORK = ("prior.image_size",)


def judging_of_run(folder: Path, line: CommandLine, command: str) -> Judging:
    """The judging of a finished run's backbone.

    Raises:
        ConfigError: words that cannot be meant. MissingError: the folder holds no finished run.
    """
    check_words(line.overrides, folder.name)
    tree, facts = run_folder.run_config(folder), run_folder.run_facts(folder)
    composer = Composer(line)
    words = [NO_STEP, "prior=rela_run", f"prior.run={quoted(str(folder))}", *dataset_words(composer, tree, facts)]
    words += [
        word.replace("dataset.", "prior.", 1) for word in line.overrides if word.startswith("dataset.image_size=")
    ]
    config = Composer(CommandLine(line.flags, (*words, *line.overrides))).check()
    network = config.probe.network
    prior = replace(config.prior, options={**config.prior.options, "network": network})
    config = replace(config, prior=prior, learner=Part.from_tree(tree["learner"]), seed=int(tree["seed"]))
    return Judging(config, Judged(folder, folder.name, network), command)


def judging_of_prior(line: CommandLine, command: str) -> Judging:
    """The judging of a prior's own features.

    Raises:
        ConfigError: words that cannot be meant, or no prior. MissingError: its weights are not there.
    """
    config = Composer(CommandLine(line.flags, (NO_STEP, *line.overrides))).check()
    if config.is_plain:
        raise ConfigError("prior=none has no features to judge; say another prior (`rela list priors`)")
    called = Run(config).called["prior"]
    digits = fingerprint(locate.identity(config.prior))[:8]
    folder = Path(config.paths.outputs).expanduser() / PRIORS / f"{slug(called)}-{digits}"
    return Judging(config, Judged(folder, called, "prior alone"), command)


def check_words(words: Iterable[str], run: str) -> None:
    """Only what does not change the run may be said beside its name.

    Raises:
        ConfigError: something else is.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("~+")
        if key.partition(".")[0] not in OF_RUN and key not in OF_ITS_NETWORK:
            allowed = ", ".join((*(f"{group}=" for group in OF_RUN), *(f"{key}=" for key in OF_ITS_NETWORK)))
            raise ConfigError(f"{word} cannot be said beside a finished run ({run}): allowed are {allowed}")


def dataset_words(composer: Composer, tree: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """The run's own dataset as overrides; of another one that is asked for, the size at which it is shown."""
    said = {word.partition("=")[0]: word.partition("=")[2] for word in composer.line.overrides}
    if "dataset" in said:
        keys = composer.keys("dataset", said["dataset"])
        is_open = "image_size" in keys and "dataset.image_size" not in said
        return [f"dataset.image_size={facts['image_size']}"] if is_open else []
    own = section(tree, "dataset")
    keys = composer.keys("dataset", str(own["name"]))
    options = {key: value for key, value in own.items() if key in keys and key not in ("name", "_target_", "card")}
    return [f"dataset={own['name']}", *(f"dataset.{key}={written(value)}" for key, value in options.items())]


def written(value: Any) -> str:
    """A value of a config.yaml as one would type it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str):
        return quoted(value)
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not is_number(value) else str(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def quoted(text: str) -> str:
    """A text in quotes for Hydra: backslashes before a quote, and quotes, are escaped."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and "\\'"), text, count=0) + "'"
