"""`rela reproduce`: one of the paper's tables, from what is there to a table, plots and a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rela_cli.commands.reproduce.execute import Executor
from rela_cli.commands.reproduce.finish import finish
from rela_cli.commands.reproduce.runs import PlannedRun, PlannedRuns, check_runs
from rela_cli.commands.reproduce.tables import PROFILES, TABLES, PaperTable, with_live
from rela_cli.config.arguments import Choice, Parser, WholeNumber
from rela_cli.config.compose import compose
from rela_cli.config.text import quoted_if_needed
from rela_cli.errors import ConfigError, MissingError, RelaError, did_you_mean
from rela_cli.launch.shares import Shares, divide
from rela_cli.machine import signals
from rela_cli.machine.processors import visible_gpus
from rela_cli.pipeline.estimate import Cost, Estimator
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.screen import say
from rela_cli.terminal import as_duration, as_si

DESCRIPTION = """\
Makes a table of the paper: it prints the plan, makes the missing runs, and writes table.md, table.csv, plots
and report.html. The same command again makes what is still missing."""
EXAMPLES = (
    "rela reproduce table1-cifar10 --profile mini --data FOLDER",
    "rela reproduce table-ablation --profile full --data FOLDER --dry-run",
)
PROFILES_EXPLAINED = """\
profiles:
  full    the paper's protocol, for GPUs
  mini    two CPU cores, half an hour
  smoke   the digits, a minute or two: shows what comes out, but its numbers mean nothing"""
NOTES = {"smoke": "smoke shows that a table comes out; its runs are far too short for their numbers to mean anything"}
JOBS = "runs at a time (default: 2 on a CPU; on a GPU 1 until the first has run, then as many as have room)"
TO_MAKE = ("to do", "waits")  # states of runs that will be made


@dataclass(frozen=True)
class TableRequest:
    """What the command line asks for."""

    table: PaperTable
    profile: str
    data: Path | None
    out: Path
    outputs: Path
    jobs: int
    by_room: bool  # whether `jobs` is only the beginning: one a GPU, then as many as have room
    launcher: str
    dry_run: bool


def main(argv: list[str]) -> int:
    """Plan, run, show; 1 when a run failed, 3 when there is nothing that could be run.

    Raises:
        ConfigError: no such table, profile or key. MissingError: none of its data is here.
    """
    request = read(argv)
    runs = PlannedRuns(request.table, request.data, [f"paths.outputs={quoted_if_needed(str(request.outputs))}"])
    check_runs(runs)
    show_plan(runs, request)
    if all(planned.state == "not available" for planned in runs):
        raise MissingError(f"no column of {request.table.name} can be run: {next(iter(runs)).missing}")
    if request.dry_run:
        return 0
    with TemporaryDirectory(prefix="rela-") as folder:
        shares = shares_of_runs(runs, request, Path(folder))
        return made(Executor(runs, shares, request.out, say, request.launcher), request)


def made(executor: Executor, request: TableRequest) -> int:
    """Make the runs, and the table of them; the exit status."""
    with signals.collected() as caught:
        executor.run(caught)
    finish(executor.runs, request.out, request.profile)
    for failure in executor.failed:
        say(f"failed: {failure}")
    return 1 if executor.failed else 0


# ------------------------------------------------------------------------------------------------- the command line


def parser() -> Parser:
    """The command line of `rela reproduce`."""
    made = Parser("reproduce", DESCRIPTION, EXAMPLES, PROFILES_EXPLAINED)
    made.add("table", nargs="?", default="", metavar="TABLE", help=", ".join(TABLES), offers=lambda: TABLES)
    profile, shown = Choice("--profile", PROFILES), "|".join(PROFILES)
    made.add("--profile", default="mini", type=profile, metavar=shown, help="default: mini")
    data = "the folder of the dataset, or one that holds several datasets by their names"
    made.add("--data", default="", metavar="FOLDER", help=data)
    place = "default: outputs/tables/TABLE-PROFILE[-live]"
    made.add("--to", "--out", dest="out", default="", metavar="FOLDER", help=place)
    made.add_outputs()
    made.add("--jobs", type=WholeNumber("--jobs"), metavar="N", help=JOBS)
    made.add("--launcher", default="", metavar="NAME", help="a Hydra launcher in place of --jobs, such as joblib")
    made.add("--live", action="store_true", help="beside each trained prior, the same with matching.targets=live")
    made.add("--dry-run", action="store_true", help="stop after the plan")
    return made


def read(argv: Sequence[str]) -> TableRequest:
    """Table and flags.

    Raises:
        ConfigError: one that is not known, with the nearest name.
    """
    given = parser().read(argv)
    name, profile = given.table, given.profile
    if not name:
        raise ConfigError(f"say which table: {', '.join(TABLES)}")
    if name not in TABLES:
        raise ConfigError(f"unknown table {name}{did_you_mean(name, TABLES)} (allowed: {', '.join(TABLES)})")
    outputs, table = given.outputs.expanduser(), TABLES[name](profile)
    return TableRequest(
        with_live(table) if given.live else table,
        profile,
        folder_of(given.data),
        Path(given.out or outputs / "tables" / f"{name}-{profile}{'-live' * given.live}").expanduser(),
        outputs,
        given.jobs or default_jobs(),
        bool(visible_gpus()) and not given.jobs and not given.launcher,
        given.launcher,
        given.dry_run,
    )


def folder_of(text: str) -> Path | None:
    """The data folder.

    Raises:
        MissingError: it is not there.
    """
    if not text:
        return None
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise MissingError(f"--data {text} is not a folder (looked at {path})")
    return path


def default_jobs() -> int:
    """One run a GPU, or two on a CPU."""
    return len(visible_gpus()) or min(2, os.cpu_count() or 1)


def shares_of_runs(runs: PlannedRuns, request: TableRequest, folder: Path) -> Shares:
    """This machine for the runs of a table, as for the cells of a sweep with the settings of the first one."""
    runtime = next(planned.config.runtime for planned in runs if not (planned.missing or planned.waits))
    return divide(replace(runtime, cells_at_once=None if request.by_room else request.jobs), folder)


# ---------------------------------------------------------------------------------------------------------- the plan


def show_plan(runs: PlannedRuns, request: TableRequest) -> None:
    """A line for each column and budget; then what is missing and what it will take."""
    say(f"{request.table.name}, {request.profile}")
    if note := NOTES.get(request.profile):
        say(f"  {note}")
    if any(planned.state in TO_MAKE for planned in runs):
        say("  trying out a few steps of each kind of run, to know how long it takes here")
    estimator = Estimator(max(1, (os.cpu_count() or 1) // request.jobs) if request.jobs > 1 else None)
    totals, reasons, seen = Totals(), dict[str, list[str]](), set[int]()
    for (_, name, budget), group in entries(runs):
        own = [planned for planned in group if id(planned) not in seen]
        seen |= {id(planned) for planned in own}
        states = [planned.state for planned in group]
        took = totals.add(
            cost for planned in own if planned.state in TO_MAKE and (cost := planned_cost(planned, estimator))
        )
        if "not available" in states:
            reasons.setdefault(group[0].missing, []).append(name)
        about = f"about {as_duration(took)}" if took else ""
        say(f"  {name:<26} budget {budget:<5g} {counts(states):<26} {about}".rstrip())
    if any(planned.state == "waits" for planned in runs):
        say("  waits: its prior is a run of this table, which is trained first")
    for missing, names in reasons.items():
        say(f"  not available: {', '.join(dict.fromkeys(names))}: {missing}")
    say(totals.words(request.jobs))
    if request.by_room and totals.seconds:
        say("  more at a time when the first has run, as many as the GPU has room for: then it takes less")


@dataclass
class Totals:
    """What all runs that are to do will take."""

    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0

    def add(self, costs: Iterable[Cost]) -> float:
        """Take in some runs; their seconds."""
        took = 0.0
        for cost in costs:
            took += cost.seconds
            self.disk += cost.disk_bytes
            self.memory = max(self.memory, cost.memory_bytes)
        self.seconds += took
        return took

    def words(self, jobs: int) -> str:
        if not self.seconds:
            return "  nothing to do"
        return (
            f"  in all about {as_duration(self.seconds / jobs)} with {jobs} at a time, "
            f"{as_si(self.disk, 'B')} of disk; each run at a time takes {as_si(self.memory, 'B')} of memory to train"
        )


def entries(runs: PlannedRuns) -> list[tuple[tuple[int, str, float], list[PlannedRun]]]:
    """Columns and budgets of the table, and before them the priors that are trained for it."""
    own = {id(planned) for group in runs.by_place.values() for planned in group}
    alone = {id(planned.teacher) for planned in runs} - own
    priors = [planned for planned in runs if id(planned) in alone]
    first = [((0, f"{prior.column.name} (a prior)", prior.budget), [prior]) for prior in priors]
    return [*first, *runs.by_place.items()]


def planned_cost(planned: PlannedRun, estimator: Estimator) -> Cost | None:
    """What a run will cost; one that waits for its prior is taken for plain, None where it cannot be told."""
    if not planned.waits:
        return estimator.cost(planned.run)
    words = [word for word in planned.words if not word.startswith("prior=")]
    try:
        return estimator.cost(Run(compose([*words, "prior=none"])))
    except RelaError:
        return None


def counts(states: Sequence[str]) -> str:
    """3 runs: 1 cached, 2 to do."""
    named = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return named[0] if len(named) == 1 else ", ".join(named)
