"""From a finished run, or a prior, and a few words to the config that judges it on a dataset.

The words are those of a command line: dataset=digits dataset.root=FOLDER probe.protocols=[lbfgs]. Without dataset= it
is the run's own dataset. Images are shown at the size that the run was trained at, unless dataset.image_size says
another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rela_cli.config.compose import Composer
from rela_cli.config.overrides import CommandLine
from rela_cli.config.parts import import_target
from rela_cli.config.schema import Config, Part
from rela_cli.config.text import quote
from rela_cli.data.base import open_dataset
from rela_cli.errors import ConfigError
from rela_cli.pipeline.judging import SEGMENT, Judged, Judging
from rela_cli.pipeline.run import Run
from rela_cli.store.beside import PRIORS_FOLDER
from rela_cli.store.files import fingerprint, section
from rela_cli.store.names import slug
from rela_cli.weights import locate, run_folder

NO_STEP = "batch_size=2"  # nothing is trained, so a batch has to fit into any dataset
OF_RUN = ("dataset", "probe", "runtime", "checkpoint", "allow")  # groups that may be said beside the name of a run
SINGLE = ("paths.outputs", "prior.image_size")  # and keys


def judging_of_run(folder: Path, line: CommandLine, command: str) -> Judging:
    """The judging of a finished run's backbone.

    Raises:
        ConfigError: words that are wrong. MissingError: the folder holds no finished run.
    """
    check_words(line.overrides, folder.name)
    tree, facts = run_folder.run_config(folder), run_folder.run_facts(folder)
    composer = Composer(line)
    words = [NO_STEP, "prior=rela_run", f"prior.run={quote(str(folder))}", *dataset_words(composer, tree, facts)]
    words += [
        word.replace("dataset.", "prior.", 1) for word in line.overrides if word.startswith("dataset.image_size=")
    ]
    config = Composer(CommandLine(line.flags, (*words, *line.overrides))).check()
    network = config.probe.network
    prior = replace(config.prior, options={**config.prior.options, "network": network})
    config = replace(config, prior=prior, learner=Part.from_tree(tree["learner"]), seed=int(tree["seed"]))
    return Judging(fitting(config, line.overrides), Judged(folder, folder.name, network), command)


def judging_of_prior(line: CommandLine, command: str) -> Judging:
    """The judging of a prior's own features.

    Raises:
        ConfigError: words that are wrong, or no prior. MissingError: its weights are not there.
    """
    config = fitting(Composer(CommandLine(line.flags, (NO_STEP, *line.overrides))).check(), line.overrides)
    if config.is_plain:
        raise ConfigError("prior=none has no features to judge; say another prior (`rela list priors`)")
    called = Run(config).called["prior"]
    digits = fingerprint(locate.identity(config.prior))[:8]
    folder = config.outputs / PRIORS_FOLDER / f"{slug(called)}-{digits}"
    return Judging(config, Judged(folder, called, "prior alone"), command)


def has_masks(dataset: Part) -> bool:
    """Whether the labels of a dataset are a class for each pixel."""
    return bool(getattr(import_target(dataset), "has_masks", False))


def fitting(config: Config, words: Sequence[str]) -> Config:
    """With probe.protocols=[segment] for a dataset with masks, unless other protocols were asked for."""
    if not has_masks(config.dataset) or any(word.lstrip("+").startswith("probe.protocols=") for word in words):
        return config
    return replace(config, probe=replace(config.probe, protocols=(SEGMENT,)))


def at_the_end(config: Config, line: CommandLine, overrides: Sequence[str]) -> list[CommandLine]:
    """The command lines that judge a run on the datasets of its `evaluate=`, each looked at, or downloaded, first.

    Raises:
        ConfigError: a dataset that nobody knows, or one without labels. MissingError: one that is not there.
    """
    kept = [word for word in overrides if word.startswith(("probe.", "probe=", "runtime", "paths.outputs=", "allow="))]
    flags = {flag: value for flag, value in line.flags.items() if flag.startswith("--config-")}
    found = []
    for named in config.evaluate:
        name, _, root = named.partition(":")
        words = [f"dataset={name}", *([f"dataset.root={quote(root)}"] if root else [])]
        Composer(line).keys("dataset", name)
        other = Composer(CommandLine(flags, (NO_STEP, *words, *kept))).check()
        protocols = [f"probe.protocols=[{SEGMENT}]"] if has_masks(other.dataset) else []
        found.append(CommandLine(flags, (*words, *kept, *protocols)))
        dataset = open_dataset(other)
        dataset.fetch()  # a training is long, and may end on a machine without network
        if not protocols and (why := dataset.why_unprobed):
            raise ConfigError(f"evaluate={named} has no labels to judge by: {why}")
    return found


def check_words(words: Iterable[str], run: str) -> None:
    """Only what does not change the run may be said beside its name.

    Raises:
        ConfigError: something else is.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("~+")
        if key.partition(".")[0] not in OF_RUN and key not in SINGLE:
            allowed = ", ".join(f"{name}=" for name in (*OF_RUN, *SINGLE))
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
    return quote(value) if isinstance(value, str) else json.dumps(value)
