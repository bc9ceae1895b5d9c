"""`rela table --on DATASET,...`: what runs and priors are worth on other data, by the files beside them.

A row is a way to a backbone, over its seeds; a column is a dataset, and the last one the mean of them all. A number of
the run's own dataset is its own, from result.json, unless a file beside the run has one.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rela_cli.errors import ConfigError, RelaError, did_you_mean
from rela_cli.report.grids.cells import SEEN, UNKNOWN
from rela_cli.report.results.comparison import Protocol, Result, columns_of, measured_by, results_in, rows_of
from rela_cli.report.results.run_files import read_manifest
from rela_cli.store.beside import PRIORS_FOLDER, files_in
from rela_cli.store.files import load_json, reason_of, section
from rela_cli.store.sealed import BY_HAND, Damaged

ALL_DATASETS = "all"


@dataclass(frozen=True)
class TransferDataset:
    """A column: a dataset of so many images, under the name that it is called by; `size` where several were shown."""

    name: str
    train: int
    test: int
    size: int | None = None

    @property
    def at_any_size(self) -> TransferDataset:
        """The dataset, whatever size its images were shown at."""
        return replace(self, size=None)


@dataclass(frozen=True)
class Number:
    """One measured number, and the marks of labels that were seen."""

    top1: float
    mark: str = ""


@dataclass
class TransferRow:
    """A row: its labels, and its numbers by dataset, protocol and seed."""

    labels: tuple[str, ...]
    is_trained: bool
    numbers: dict[tuple[TransferDataset, Protocol], dict[int, Number]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    @property
    def has_seeds(self) -> bool:
        """Whether it is of runs, which have seeds; a prior alone has none."""
        return self.labels[0] != ""

    def add(self, dataset: TransferDataset, seed: int, measured: Mapping[Protocol, float], mark: str) -> None:
        """What one file says; a number that is there already stays."""
        for protocol, top1 in measured.items():
            self.numbers[dataset, protocol].setdefault(seed, Number(top1, mark))

    def means(self, datasets: Sequence[TransferDataset], protocol: Protocol) -> dict[int, float]:
        """By seed the mean over the datasets, of seeds that have them all."""
        every = [self.numbers.get((dataset, protocol), {}) for dataset in datasets]
        seeds = set.intersection(*(set(one) for one in every)) if every else set()
        return {seed: statistics.fmean(one[seed].top1 for one in every) for seed in sorted(seeds)}


# ----------------------------------------------------------------------------------------------------- reading


def lines_of(results: Sequence[Result], priors: Sequence[Path], problems: list[str]) -> list[TransferRow]:
    """Every row: the ways to a backbone of the runs, their learners before any training, and the priors alone."""
    found = []
    for row in rows_of(results):
        fresh = TransferRow((*row.names, row.label, "", "untrained"), False)
        trained = []
        for column in (column for column in columns_of(results) if column.kind in ("plain", "prior")):
            runs = [result for result in results_in(results, row, column) if result.finished]
            trained += [line_of(runs, (*row.names, row.label, f"{row.budget:g}", column.name), fresh, problems)]
        found += [fresh, *trained]
    return merged([line for line in found + [prior_line(folder, problems) for folder in priors] if line.numbers])


def line_of(runs: Sequence[Result], labels: tuple[str, ...], fresh: TransferRow, problems: list[str]) -> TransferRow:
    """The row of some runs that differ in their seed alone; what the untrained learner reaches goes to `fresh`."""
    line = TransferRow(labels, True)
    for run in runs:
        for facts in read_numbers(run.folder, problems):
            line.add(dataset_of(facts), run.seed, measured_by(facts.get("probe")), mark_of(facts))
            fresh.add(dataset_of(facts), run.seed, as_online(measured_by(facts.get("untrained"))), "")
        own, mark = own_dataset(run), mark_of(run.raw) if run.variant else ""
        line.add(own, run.seed, measured_by(run.raw.get("probe")), mark)
        untrained = section(section(dict(run.raw), "baselines"), "untrained")
        fresh.add(own, run.seed, as_online(measured_by(untrained)), "")
    return line


def prior_line(folder: Path, problems: list[str]) -> TransferRow:
    """The row of a prior."""
    files = list(read_numbers(folder, problems))
    title = str(files[0].get("judged", folder.name)) if files else folder.name
    line = TransferRow(("", "", "", "", "", f"{title} alone"), False)
    for facts in files:
        line.add(dataset_of(facts), 0, as_online(measured_by(facts.get("probe"))), mark_of(facts))
    return line


def merged(lines: Sequence[TransferRow]) -> list[TransferRow]:
    """Rows of the same labels as one: the untrained learner is the same for every budget."""
    found: dict[tuple[str, ...], TransferRow] = {}
    for line in lines:
        into = found.setdefault(line.labels, TransferRow(line.labels, line.is_trained))
        for key, numbers in line.numbers.items():
            into.numbers[key] = numbers | into.numbers[key]
    return list(found.values())


def as_online(measured: Mapping[Protocol, float]) -> dict[Protocol, float]:
    """An untrained learner, or a prior, has one network, which stands beside the online one."""
    return {Protocol(protocol.name, "online"): top1 for protocol, top1 in measured.items()}


def read_numbers(folder: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The files of numbers beside a run; what cannot be used goes to `problems`."""
    for path in files_in(folder):
        try:
            facts = load_json(path)[0]
        except (OSError, Damaged) as error:
            problems.append(f"{path}: left out, it cannot be used: {reason_of(error)}; {BY_HAND}")
            continue
        if isinstance(facts.get("dataset"), str):
            yield facts


def dataset_of(facts: Mapping[str, Any]) -> TransferDataset:
    """The dataset of a file."""
    return TransferDataset(
        str(facts["dataset"]),
        number_of(facts, "train_samples"),
        number_of(facts, "test_samples"),
        number_of(facts, "fed_size") or None,
    )


def own_dataset(run: Result) -> TransferDataset:
    """The dataset that a run was trained on."""
    size = number_of(section(dict(read_manifest(run.folder)), "train"), "image_size")
    name = dict(run.shared).get("dataset", "")
    return TransferDataset(name, number_of(run.raw, "train_samples"), number_of(run.raw, "test_samples"), size or None)


def number_of(facts: Mapping[str, Any], key: str) -> int:
    """A whole number of a file that anybody may have written; 0 where there is none."""
    value = facts.get(key)
    return value if isinstance(value, int) else 0


def mark_of(facts: Mapping[str, Any]) -> str:
    """What stands behind a number whose backbone has seen the labels, or of which nobody says."""
    return SEEN * bool(facts.get("prior_saw_labels")) or UNKNOWN * bool(facts.get("labels_unknown"))


def priors_in(paths: Sequence[Path]) -> list[Path]:
    """The folders of judged priors in some outputs folders."""
    return [folder for path in paths for folder in sorted((path / PRIORS_FOLDER).glob("*-*")) if files_in(folder)]


# -------------------------------------------------------------------------------------------------------- choosing


def with_one_size(lines: Sequence[TransferRow]) -> None:
    """Take the size out of the columns, unless some row has numbers of one dataset at several."""
    several = set[TransferDataset]()
    for line in lines:
        sizes = Counter((dataset.at_any_size, protocol) for dataset, protocol in line.numbers)
        several |= {dataset for (dataset, _), count in sizes.items() if count > 1}
    for line in lines:
        kept: dict[tuple[TransferDataset, Protocol], dict[int, Number]] = defaultdict(dict)
        for (dataset, protocol), numbers in line.numbers.items():
            of_all = dataset.at_any_size
            kept[dataset if of_all in several else of_all, protocol] |= numbers
        line.numbers = kept


def chosen_datasets(lines: Sequence[TransferRow], names: Sequence[str]) -> list[TransferDataset]:
    """The columns that are asked for, in that order.

    Raises:
        ConfigError: nothing was judged on one of them.
    """
    there = sorted(
        {dataset for line in lines for dataset, _ in line.numbers}, key=lambda d: (d.name, d.train, d.size or 0)
    )
    known = dict.fromkeys(dataset.name for dataset in there)
    for name in names:
        if name not in (ALL_DATASETS, *known):
            raise ConfigError(
                f"--on={name}: nothing was judged on it{did_you_mean(name, known)} "
                f"(there are {', '.join(known)}, all); `rela probe RUN dataset=...` does it"
            )
    wanted = [*known] if ALL_DATASETS in names else list(dict.fromkeys(names))
    return [dataset for name in wanted for dataset in there if dataset.name == name]


def protocols_in(
    lines: Sequence[TransferRow], datasets: Sequence[TransferDataset], name: str, network: str
) -> list[Protocol]:
    """The protocols of some columns, restricted to those asked for.

    Raises:
        RelaError: nothing was measured by them.
    """
    there = {protocol for line in lines for dataset, protocol in line.numbers if dataset in datasets}
    found = sorted(p for p in there if name in ("all", p.name) and network in ("all", p.network))
    if not found:
        known = ", ".join(protocol.title for protocol in sorted(there)) or "nothing"
        raise RelaError(f"nothing here has --protocol={name} --network={network}; measured: {known}")
    return found
