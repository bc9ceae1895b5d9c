"""From a table's columns to runs: which words, which data, what of it is there. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

from rela_cli.commands.reproduce.tables import PaperTable, TableColumn
from rela_cli.config.compose import compose
from rela_cli.config.schema import Config
from rela_cli.config.text import quoted_if_needed
from rela_cli.errors import MissingError, RelaError, first_line
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.to_do import has_work, stage_states

TRAIN, TEST = ("train",), ("test", "val")


@dataclass(frozen=True)
class KnownLayout:
    """How a dataset looks on disk: its own loader's marks, or so many class folders; and folders people keep it in."""

    dataset: str
    marks: tuple[str, ...]
    classes: int
    folders: tuple[str, ...]

    def words(self, root: Path) -> list[str] | None:
        """The overrides that read it from `root`, or None when it is not there."""
        if any((root / mark).exists() for mark in self.marks):
            return [f"dataset={self.dataset}", f"dataset.root={quoted_if_needed(str(root))}"]
        train = root / "train"
        if not train.is_dir() or not any((root / name).is_dir() for name in TEST):
            return None
        if sum(folder.is_dir() for folder in train.iterdir()) != self.classes:
            return None
        return ["dataset=image_folder", f"dataset.root={quoted_if_needed(str(root))}"]


LAYOUTS = {
    "digits": None,  # scikit-learn's; nothing to look for
    "cifar10": KnownLayout("cifar10", ("cifar-10-batches-py",), 10, ("cifar10", "cifar-10", "CIFAR10")),
    "cifar100": KnownLayout("cifar100", ("cifar-100-python",), 100, ("cifar100", "cifar-100", "CIFAR100")),
    "tin": KnownLayout("tiny_imagenet", ("wnids.txt",), 200, ("tiny-imagenet-200", "tiny_imagenet", "tin")),
    "in1k": KnownLayout("imagenet1k", ("ILSVRC", "LOC_val_solution.csv"), 1000, ("imagenet", "imagenet1k", "in1k")),
}


def data_words(data: str, given: Path | None, limited: bool) -> list[str]:
    """Where a dataset is read from: `given` itself, or a folder of its usual names in it.

    Raises:
        MissingError: it is not there.
    """
    layout = LAYOUTS[data]
    if layout is None:
        return []
    limit = ["dataset.limit=5000"] if limited else []
    places = [given, *(given / name for name in layout.folders)] if given else []
    for place in places:
        if found := layout.words(place):
            return [*found, *limit]
    if given is None:
        raise MissingError(f"say where {layout.dataset} is: DATA=FOLDER")
    raise MissingError(
        f"no {layout.dataset} in {given}: it would have {' or '.join(layout.marks)}, or train/ with {layout.classes} "
        f"class folders and test/ or val/; it is looked for there and in {', '.join(layout.folders)} below it"
    )


@dataclass
class PlannedRun:
    """One run of a column, or why there is none."""

    column: TableColumn
    budget: float
    seed: int
    given: Path | None
    common: tuple[str, ...]  # of every run: where outputs lie, threads
    teacher: PlannedRun | None = None
    missing: str = ""
    words: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        limited = "experiment=cifar10_mini" in " ".join(self.column.words)
        try:
            data = data_words(self.column.data, self.given, limited)
        except MissingError as error:
            data, self.missing = [], str(error)
        # groups first and data last: a preset names a dataset of its own, which the folder given replaces
        own = (f"budget={self.budget:g}", f"seed={self.seed}")
        self.words = (*self.column.words, *data, *own, *self.common)
        if self.teacher and self.teacher.missing:
            self.missing = self.missing or f"its prior cannot be trained: {self.teacher.missing}"

    @property
    def waits(self) -> bool:
        """Whether its prior has to be trained first."""
        return self.teacher is not None and not self.teacher.done

    @property
    def all_words(self) -> list[str]:
        """The overrides of `rela train`.

        Raises:
            MissingError: its prior is not trained yet.
        """
        if self.teacher is None:
            return list(self.words)
        return [*self.words, f"prior.run={quoted_if_needed(str(self.teacher.run.folder.absolute()))}"]

    @cached_property
    def config(self) -> Config:
        """Composed once for all seeds: that takes as long as all else of a plan."""
        return replace(config_of_words(tuple(w for w in self.all_words if not w.startswith("seed="))), seed=self.seed)

    @cached_property
    def run(self) -> Run:
        return Run(self.config)

    @property
    def done(self) -> bool:
        """Whether it is finished, numbers and all."""
        return self.state == "cached"

    @property
    def state(self) -> str:
        """cached, to do, waits, or not available; finds out in the last case why."""
        if self.missing:
            return "not available"
        if self.waits:
            return "waits"
        try:
            states = stage_states(self.run, "probe")
        except MissingError as error:
            self.missing = first_line(error)
            return "not available"
        return "to do" if has_work(states) else "cached"

    @property
    def key(self) -> str:
        """A run's name within this command: two cells with one key are one run, made once."""
        if not self.missing and not self.waits:
            try:
                return str(self.run.folder)
            except MissingError:
                pass
        return " ".join(sorted(self.words)) + (self.teacher.key if self.teacher else "")


@cache
def config_of_words(words: tuple[str, ...]) -> Config:
    """The config of some words."""
    return compose(list(words))


class PlannedRuns:
    """All runs of a table, teachers included; a run that two columns share is there once."""

    def __init__(self, table: PaperTable, given: Path | None, common: Sequence[str]) -> None:
        self.table, self.given, self.common = table, given, tuple(common)
        self.by_key: dict[str, PlannedRun] = {}
        self.by_place: dict[tuple[int, str, float], list[PlannedRun]] = {}
        for number, section in enumerate(table.sections):
            for column in section.columns:
                for budget in column.budgets:
                    seeds = [self.planned(column, budget, seed) for seed in column.seeds]
                    self.by_place[number, column.name, budget] = seeds

    def planned(self, column: TableColumn, budget: float, seed: int) -> PlannedRun:
        """A run, made known once."""
        teacher = self.planned(column.teacher, 1.0, column.teacher.seeds[0]) if column.teacher else None
        planned = PlannedRun(column, budget, seed, self.given, self.common, teacher)
        return self.by_key.setdefault(planned.key, planned)

    def __iter__(self) -> Iterator[PlannedRun]:
        """Every run once, teachers before those they teach."""
        return iter(self.by_key.values())

    def folders(self, section: int) -> list[Path]:
        """The finished runs of a section."""
        runs = [planned for (number, *_), found in self.by_place.items() if number == section for planned in found]
        return list(dict.fromkeys(planned.run.folder for planned in runs if not planned.missing and planned.done))


def check_runs(runs: PlannedRuns) -> None:
    """Every run that can be composed now is: a table with a wrong setting stops before any work.

    Raises:
        RelaError: with the run's words.
    """
    for planned in runs:
        if planned.missing or planned.waits:
            continue
        try:
            _ = planned.config
        except MissingError:
            continue
        except RelaError as error:
            raise type(error)(f"{' '.join(planned.words)}: {error}") from error
