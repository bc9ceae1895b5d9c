"""`rela probe RUN...`: finished runs, or a prior alone, judged on any dataset. No run is trained or changed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rela_cli.config.overrides import LONG_FLAGS, VALUED, CommandLine, RunParser
from rela_cli.errors import ConfigError, MissingError
from rela_cli.launch.judge import judging_of_prior, judging_of_run
from rela_cli.store.disk import OUTPUTS
from rela_cli.store.notices import warn
from rela_cli.store.outputs import RunFolder, find_run, run_at, run_folders, run_names
from rela_cli.weights.run_folder import trained

WILD = "*?["


def main(argv: Sequence[str]) -> int:
    """Judge the runs named, or the prior.

    Raises:
        ConfigError: a command line that is wrong. MissingError: no such run, or none that is finished.
    """
    line, names, alone = read(argv)
    command = shlex.join(["rela", "probe", *argv])
    if alone:
        judging_of_prior(line, command).judge()
    else:
        judgings = [judging_of_run(run.folder, line, command) for run in finished_runs(names, outputs_of(line))]
        for judging in judgings:
            judging.check()  # what is wrong with any is said before work on the first
        for judging in judgings:
            judging.judge()
    return 0


def parser() -> RunParser:
    """The command line of `rela probe RUN`."""
    made = RunParser(
        "probe",
        """Judges finished runs on any dataset: their frozen backbones under probe.protocols, with the numbers in a file
beside each run. No run is trained or changed.""",
        [
            "rela probe latest dataset=digits",
            "rela probe 'cifar10-*' dataset=image_folder dataset.root=photos probe.protocols=[lbfgs,knn]",
            "rela probe --prior-alone prior=embedded dataset=digits",
        ],
    )
    made.usage = "rela probe RUN... [key=value ...] [flags]"
    made.add("--prior-alone", action="store_true", help="judge the features of prior= in place of a run")
    made.add("runs", nargs="*", metavar="RUN", help="a folder, a name, a part of one, or a pattern", offers=run_names)
    return made


def is_meant(argv: Sequence[str]) -> bool:
    """Whether the words after `rela probe` name runs, or ask for a prior alone, rather than for a run to be made."""
    if "--prior-alone" in argv:
        return True
    valued = {"--outputs", *VALUED, *(short for short, flag in LONG_FLAGS.items() if flag in VALUED)}
    before = ["", *argv][: len(argv)]
    free = [word for word, last in zip(argv, before, strict=True) if last not in valued]
    return any("=" not in word and not word.startswith(("-", "~")) for word in free)


def read(argv: Sequence[str]) -> tuple[CommandLine, list[str], bool]:
    """The settings, the names of runs, and whether a prior alone is asked for.

    Raises:
        ConfigError: both runs and a prior alone, or neither.
    """
    given, line = parser().read_line(argv)
    names = [word for word in line.overrides if "=" not in word and not word.startswith("~")]
    if given.prior_alone and names:
        raise ConfigError(f"--prior-alone judges prior=..., so no run may be named beside it ({names[0]})")
    settings = tuple(word for word in line.overrides if word not in names)
    return CommandLine(line.flags, settings), names, given.prior_alone


def outputs_of(line: CommandLine) -> Path:
    """The folder of runs."""
    said = [word.partition("=")[2].strip("'\"") for word in line.overrides if word.startswith("paths.outputs=")]
    return Path(said[-1]).expanduser() if said else OUTPUTS


def finished_runs(names: Sequence[str], outputs: Path) -> list[RunFolder]:
    """The runs that are meant, each once. Of several, those without a backbone are left out with a warning.

    Raises:
        MissingError: no such run, or none of them is trained.
    """
    runs = {run.folder.resolve(): run for name in names for run in matching(name, outputs)}
    done = [run for run in runs.values() if trained(run.folder) and (run.folder / "backbone.safetensors").is_file()]
    left = [run for run in runs.values() if run not in done]
    if not done:
        raise MissingError(
            f"{left[0].title} has no backbone yet (it is {left[0].status}); finish it first: "
            f"{left[0].facts.get('command', 'repeat its command')}"
        )
    if left:
        warn(f"left out, since they have no backbone yet: {', '.join(run.title for run in left)}")
    return done


def matching(name: str, outputs: Path) -> list[RunFolder]:
    """The run of a name, or all runs that a pattern fits."""
    if not any(sign in name for sign in WILD) or Path(name).exists():
        return [find_run(name, outputs)]
    found = [folder for folder in run_folders(outputs) if fnmatchcase(folder.name, name)]
    if not found:
        raise MissingError(f"no run in {outputs}/runs fits {name}; `rela ls` shows what is there")
    return [run_at(folder) for folder in found]
