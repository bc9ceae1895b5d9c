"""How soon the command line answers, in seconds and in units of an empty Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results
from rela_cli.commands.bench.timing import Contestant

HOME = str(Path(__file__).parents[3])  # of the package that runs now
RELA = (sys.executable, "-m", "rela_cli")


def run(bench: Bench) -> Iterator[BenchRow]:
    """Processes in turn; by the wall clock, since somebody waits."""
    answer = partial(process, bench.folder)
    contestants = [
        Contestant("help", partial(answer, *RELA, "--help"), is_ours=True),
        Contestant("error", partial(answer, *RELA, "train", "+bugdet=0.5"), is_ours=True),
        Contestant("python", partial(answer, sys.executable, "-c", "pass")),
    ]
    comparisons = [
        Comparison("help", "python", "rela --help", 0.3, "wall", "most", "s"),
        Comparison("error", "python", "rela train +bugdet=0.5, a config error", 1.5, "wall", "most", "s"),
    ]
    yield from bench.scores("startup", contestants, comparisons, outcome)


def process(folder: Path, *command: str) -> tuple[int, str]:
    """Exit status and output of one."""
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """Ours, in which Python finds this package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([HOME, *filter(None, [os.environ.get("PYTHONPATH")])])}


def outcome(results: Results, peer: str) -> str:
    """That the answers were the right ones."""
    status, text = results["error"]
    named = "names the key" if "did you mean budget?" in text else "does not name the key"
    return (
        f"--help exits {results['help'][0]}; the error exits {status} and {named}; ratios are units of `python -c pass`"
    )
