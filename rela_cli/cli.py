"""`rela`: argv -> command. Only the standard library is imported here; the rest comes in where it is used."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli import __version__
from rela_cli.errors import ConfigError, RelaError, did_you_mean, explained, has_folder
from rela_cli.terminal import guarded, indented

if TYPE_CHECKING:
    from rela_cli.config.compose import Composer

HELP = """\
rela: self-supervised training that starts from the features of an existing model (ReLA).

usage: rela <command> [key=value ...] [flags]

Run
  train       all four stages: extract, transport, train, probe
                rela train +budget=0.5
                rela train -m budget=0.1,0.2,0.5 prior=none,random seed=0,1,2
  extract     up to the prior's features of the train split
  transport   up to the map from features to targets
  probe       up to the numbers of the backbone; or, with a finished run, its numbers on any dataset
                rela probe latest dataset=digits
  reproduce   a table of the paper              rela reproduce table1-cifar10 --data FOLDER
Before a run
  fetch       download weights and data         rela fetch prior=clip_vitb16 dataset=cifar10
  plan        what a run will take              rela plan --samples 1e8 --size 224
  rank        which prior to take               rela rank --priors random,patches,embedded
  data check  read every image of a dataset     rela data check dataset=image_folder dataset.root=FOLDER
  data pack   copy its images into few files    rela data pack dataset=image_folder dataset.root=FOLDER --to PACK
  data holdout  hold out a part of train        rela data holdout dataset=image_folder dataset.root=FOLDER --to NEW
  convert     a dataset with its targets in a folder, for any training loop
                rela convert prior=patches dataset=cifar10 --to FOLDER --images copy
Compare
  table       one table of all runs             rela table --format md
  plot        PNG and SVG: accuracy against budget and cost, training, the switch
  report      one HTML file of all that         rela report --to report.html
  watch       a page that follows the runs      rela watch; in the terminal: rela watch --text
  switch-trace  when another switch would have ended phase 1
                rela switch-trace latest switch.threshold=0.99
Use
  embed       features of the images in a folder
                rela embed latest photos --to features.parquet
  export      a backbone for torchvision, timm, onnx, ...
                rela export latest --to model --format onnx
  push        upload it to the Hugging Face hub   rela push latest OWNER/NAME
Look after
  ls          what is under outputs/            rela ls
  show        one run                           rela show latest
  clean       make room under outputs/          rela clean --dry-run
  list        what can be chosen                rela list priors
  doctor      is everything in place?           rela doctor
  bench       this code against its peers       rela bench augment --rounds 3

  rela COMMAND --help      what it does, its flags, examples; rela train --help has all groups and defaults
  --outputs FOLDER         the folder of runs and caches (or paths.outputs=FOLDER)
  rela train --cfg job     show the whole config, run nothing
  rela --version
  eval "$(rela -sc install=bash)"    tab completion (also zsh, fish)

Exit status: 0 done, 1 failed, 2 usage or config, 3 data or weights missing, 4 NaN or collapse, 129/130/143 stopped."""

STAGED = {  # what they do, and an example each that is this command's own
    "train": (
        "Runs all four stages, extract, transport, train and probe, as far as they are missing.",
        "rela train +budget=0.5",
        "rela train -m budget=0.1,0.2,0.5 prior=none,random seed=0,1,2",
    ),
    "extract": (
        "Makes the prior's features of the train split, if they are missing; all runs share them.",
        "rela extract prior=clip_vitb16 dataset=cifar10",
        "rela extract -m prior=random,patches,embedded",
    ),
    "transport": (
        "Fits the map from features to targets and makes the targets; before that the features, if they are missing.",
        "rela transport transport=pca",
        "rela transport -m transport=whitening,pca,zca prior=embedded",
    ),
    "probe": (
        "Makes the numbers of the trained backbone; before that whatever is missing.",
        "rela probe probe.protocols=[rela,lbfgs,knn,few_shot]",
        "rela probe latest dataset=digits               finished runs on any dataset; trains nothing",
        "rela probe 'cifar10-*' dataset=image_folder dataset.root=photos",
        "rela probe --prior-alone prior=embedded dataset=digits",
    ),
}
OTHER_COMMANDS = {  # the other commands: modules of commands/
    "fetch": "fetch",
    "plan": "plan",
    "rank": "rank.command",
    "switch-trace": "switch_trace",
    "embed": "embed.command",
    "export": "export.command",
    "push": "push.command",
    "table": "table",
    "plot": "plot",
    "report": "report.command",
    "watch": "watch.command",
    "reproduce": "reproduce.command",
    "bench": "bench.command",
    "ls": "ls",
    "show": "show",
    "clean": "clean",
    "list": "list",
    "convert": "convert.command",
    "data": "data.verbs",
    "doctor": "doctor",
}
COMPOSED = ("fetch", "plan", "rank", "convert")  # those that take the settings of a run
SPINS = "10000"  # turns of a thread that waits for another one: measured in docs/performance.md
SCREEN = {"COLUMNS": 20, "LINES": 2}  # the least that text can be laid out on


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Everything a user should read ends here as a message."""
    words = list(sys.argv[1:] if argv is None else argv)
    share_cores()
    forget_odd_screen()
    with guarded():
        return of_rank(words)


def share_cores() -> None:
    """Let a thread that waits for another one go to sleep soon, unless the user has said how threads wait.

    torch's OpenMP (GNU's) reads it when it is loaded. By its own default a thread spins for 300,000 turns, which takes
    the cores from other runs; threads that sleep at once wake each other up at every small product.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def of_rank(words: Sequence[str]) -> int:
    """Run a command; one of several ranks also records that it started and ended (`launch/rank_processes.py`)."""
    if "RANK" not in os.environ:
        return attempt(words)
    from rela_cli.distributed import ranks
    from rela_cli.launch import rank_processes

    rank_processes.note_start(ranks.rank())
    status = attempt(words)
    rank_processes.note_end(ranks.rank())
    return status


def forget_odd_screen() -> None:
    """Drop COLUMNS and LINES that are no size of a screen, such as the 0 of containers, editors and CI.

    Libraries that find no such variable ask the terminal, or take 80 by 24; with COLUMNS=0 they print nothing.
    """
    for name, least in SCREEN.items():
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and int(value) >= least):
            os.environ.pop(name, None)


def attempt(words: Sequence[str]) -> int:
    """Run one command, and say what went wrong."""
    if not has_folder():
        return _say("the folder that you are in has been removed: cd to one that is there", 1)
    try:
        status = dispatch(words)
        sys.stdout.flush()
        return status
    except SystemExit as done:  # argparse, behind --help
        return done.code if isinstance(done.code, int) else 0
    except BrokenPipeError:  # rela list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stopped:  # errors.Stopped says which signal it was
        return _say(str(stopped) or "stopped; the same command goes on", getattr(stopped, "exit_code", 130), True)
    except RelaError as error:
        return _say(str(error), error.exit_code, error.of_all)
    except Exception as error:
        if reason := explained(error):
            return _say(reason, 1)
        return _say(f"{_where(error)}\n{type(error).__name__}: {error}\nset RELA_DEBUG=1 for the traceback", 1)


def dispatch(words: Sequence[str]) -> int:
    """The command that `words` name."""
    if words and words[0] == "help" and words[1:]:
        words = (*words[1:], "--help")
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"rela {__version__}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return complete(list(words[1:]))
    if words[0] == "probe":
        from rela_cli.commands import probe

        if probe.is_meant(words[1:]):
            return probe.main(words[1:])
    if words[0] in STAGED:
        return staged(words[0], words[1:])
    if words[0] in OTHER_COMMANDS:
        command = import_module(f"rela_cli.commands.{OTHER_COMMANDS[words[0]]}")
        from rela_cli.machine import signals

        with signals.between():
            return int(command.main(list(words[1:])))
    raise ConfigError(_unknown(words[0], (*STAGED, *OTHER_COMMANDS)))


def staged(command: str, words: Sequence[str]) -> int:
    """A command that Hydra composes the config for."""
    from rela_cli.config.overrides import parse

    line = parse(words)
    from rela_cli.config.compose import Composer, hand_over
    from rela_cli.launch import sweep
    from rela_cli.launch.job import Job, Single

    job = Job(command, line)
    if line.shows:
        return _show(job.command, Composer(line))
    if line.is_sweep:
        return sweep.run_sweep(job)
    composer = Composer(line)
    composer.check()
    composer.say_notes()
    task = Single(job)
    hand_over(command, line, task, checked=composer)
    if task.error:
        raise task.error
    return 0


def _show(command: str, composer: Composer) -> int:
    """--help, --cfg, --info and the like."""
    from contextlib import redirect_stdout
    from io import StringIO

    from rela_cli.config.compose import hand_over
    from rela_cli.store.secrets import redact

    shown = StringIO()
    if "--help" in composer.line.flags:
        does, *examples = STAGED[command]
        shown.write(f"usage: rela {command} [key=value ...] [flags]\n\n{does}\n\n")
        shown.write("".join(f"  {example}\n" for example in examples))
    try:
        with redirect_stdout(shown):
            hand_over(command, composer.line, _nothing)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    except BrokenPipeError:
        raise
    except Exception as error:
        raise ConfigError("\n".join(composer.problems()) or str(error)) from error
    finally:
        print(redact(shown.getvalue()), end="")
    return 0


def _nothing(tree: object) -> None:
    """Hydra wants a task also where it will not call it."""


def complete(words: list[str]) -> int:
    """`rela -sc install=bash`, and the query that the installed script sends: Hydra's own, below our commands."""
    from rela_cli.config.overrides import CommandLine

    if words and words[0].startswith("query="):
        typed = os.environ.get("COMP_LINE")
        if typed is None:
            raise ConfigError("a completion query needs COMP_LINE; it is the shell that asks")
        program, command, rest = (*typed.split(" ", 2), "", "")[:3]
        if len(typed.split(" ")) <= 2:
            print(" ".join(name for name in (*STAGED, *OTHER_COMMANDS) if name.startswith(command)))
            return 0
        flag = rest.rpartition(" ")[2].startswith("-")
        if command in OTHER_COMMANDS and (flag or command not in COMPOSED):
            from rela_cli.commands.completion import candidates

            print("\n".join(candidates(OTHER_COMMANDS[command], rest.split(" "))))
            return 0
        if command not in (*STAGED, *COMPOSED):
            return 0
        if command == "probe":
            from rela_cli.commands.completion import fitting
            from rela_cli.store.outputs import run_names

            print("\n".join(fitting(["--prior-alone"] if flag else run_names(), rest.split(" "))))
        os.environ["COMP_LINE"] = f"{program} {rest}"
    elif not words or words[0].partition("=")[2] not in ("bash", "zsh", "fish"):
        raise ConfigError('say install=bash, install=zsh or install=fish: eval "$(rela -sc install=bash)"')
    from rela_cli.config.compose import hand_over

    hand_over("", CommandLine({"--shell-completion": None}, tuple(words)), _nothing)
    return 0


def _unknown(word: str, commands: Sequence[str]) -> str:
    if "=" in word:
        return f"say a command before {word}: {shlex.join(['rela', 'train', *sys.argv[1:]])}"
    return f"unknown command {word}{did_you_mean(word, commands)}\nCommands: {', '.join(commands)}"


def _say(message: str, status: int, of_all: bool = False) -> int:
    """An error on stderr; what all ranks of a run have to say the first says alone."""
    from rela_cli.distributed import ranks
    from rela_cli.store.secrets import redact

    if ranks.rank():
        if of_all:
            return status
        message = f"process {ranks.rank()}: {message}"
    if os.environ.get("RELA_DEBUG") == "1":
        print(redact(traceback.format_exc()), file=sys.stderr)
    print(f"rela: {indented(redact(message))}", file=sys.stderr)
    return status


def _where(error: BaseException) -> str:
    """The innermost line of ours that the error passed through."""
    home = Path(__file__).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(home)]
    return f"unexpected error in {Path(frames[-1].filename).relative_to(home)}:{frames[-1].lineno}" if frames else ""
