"""The tables of `rela table --on`: a row for each backbone, a column for each dataset, and their mean."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rela_cli.config.schema import NETWORKS
from rela_cli.report.differences.paired import Difference, paired_by_seed, paired_grid
from rela_cli.report.differences.records import difference_fields
from rela_cli.report.grids.cells import BEST, SEEN, UNKNOWN, Cell, Grid
from rela_cli.report.results.comparison import Protocol, measure_of, protocols_legend, without_constants
from rela_cli.report.results.settings import NAMED_PARTS
from rela_cli.report.tables.tables import MISSING_LEGEND, UNKNOWN_LEGEND, seeds_legend
from rela_cli.report.tables.transfer import TransferDataset, TransferRow
from rela_cli.terminal import plural

MEAN = "mean"
TRANSFER_HEADS = ("trained on", *NAMED_PARTS[1:], "settings", "budget", "backbone")
SAW_LEGEND = (SEEN, "trained with the labels of this very dataset, so it is never the best")

FRESH = {False: "untrained", True: "from scratch"}  # how the row of the untrained learner is called
FRESH_MEANS = {
    False: "the learner before any training, fed in the same way",
    True: "the same network, trained with the same labels for as many steps from its first weights",
}

TransferColumn = list[tuple[dict[int, float], str]]  # of each line the numbers by seed, and their mark


def heads_of(datasets: Sequence[TransferDataset]) -> tuple[str, ...]:
    """The columns' names, the mean last; of two alike, what tells them apart."""
    names = Counter(dataset.name for dataset in datasets)
    told_apart = [one.name if names[one.name] == 1 else f"{one.name}\n{dataset_text(one)}" for one in datasets]
    return (*told_apart, *[MEAN] * (len(datasets) > 1))


def dataset_text(dataset: TransferDataset) -> str:
    """5,000 train, 32 px"""
    return f"{dataset.train:,} train" + (f", {dataset.size} px" if dataset.size else "")


def grids_on(
    lines: Sequence[TransferRow], datasets: Sequence[TransferDataset], protocols: Sequence[Protocol]
) -> list[Grid]:
    """A table for each protocol: a row for each backbone, a column for each dataset, and the mean."""
    return [grid_on(lines, datasets, protocol) for protocol in protocols]


def grid_on(lines: Sequence[TransferRow], datasets: Sequence[TransferDataset], protocol: Protocol) -> Grid:
    """The table of one protocol."""
    shown = [line for line in lines if any((dataset, protocol) in line.numbers for dataset in datasets)]
    columns = [column_of(shown, group, protocol) for group in mean_groups(datasets)]
    counts = {
        len(found) for column in columns for line, (found, _) in zip(shown, column, strict=True) if line.has_seeds
    }
    counts.discard(0)
    cells = [column_cells(column, shown, len(counts) > 1) for column in columns]
    every_label = [
        (*line.labels[:-1], line.labels[-1].replace("untrained", FRESH[is_tuned(protocol)])) for line in shown
    ]
    title, heads, labels = without_constants(TRANSFER_HEADS, every_label, keep=1)
    what = f"{measure_of(protocol)} % by {protocol.title}"
    rows = tuple(zip(*cells, strict=True))
    return Grid(" · ".join([*title, what]), heads, heads_of(datasets), labels, rows, legend_of(rows, counts, protocol))


def is_tuned(protocol: Protocol) -> bool:
    """Whether all weights are trained, so that an untrained learner means one that is trained from scratch."""
    return protocol.name.startswith("finetune-")


def mean_groups(datasets: Sequence[TransferDataset]) -> list[list[TransferDataset]]:
    """What each column is the mean of: one dataset, and all of them where there are several."""
    return [*([one] for one in datasets), *([[*datasets]] if len(datasets) > 1 else [])]


def column_of(lines: Sequence[TransferRow], datasets: Sequence[TransferDataset], protocol: Protocol) -> TransferColumn:
    """The numbers of each line by seed, with their mark."""
    return [(line.means(datasets, protocol), mark_in(line, datasets, protocol)) for line in lines]


def column_cells(column: TransferColumn, lines: Sequence[TransferRow], is_counted: bool) -> list[Cell]:
    """One column; the best trained backbone stands out where there are several."""
    fair = {
        i: statistics.fmean(found.values())
        for i, ((found, mark), line) in enumerate(zip(column, lines, strict=True))
        if found and line.is_trained and mark != SEEN
    }
    best = max(fair.values()) if len(fair) > 1 else None
    return [
        cell_of(found, mark, best is not None and fair.get(i) == best, is_counted and lines[i].has_seeds)
        for i, (found, mark) in enumerate(column)
    ]


def mark_in(line: TransferRow, datasets: Sequence[TransferDataset], protocol: Protocol) -> str:
    """The mark of a cell's numbers: the strongest of them."""
    marks = {n.mark for dataset in datasets for n in line.numbers.get((dataset, protocol), {}).values()}
    return SEEN if SEEN in marks else UNKNOWN if UNKNOWN in marks else ""


def cell_of(found: Mapping[int, float], mark: str, is_best: bool, is_counted: bool) -> Cell:
    """62.1 ±0.4"""
    if not found:
        return Cell()
    deviation = f"±{100 * statistics.stdev(found.values()):.1f}" if len(found) > 1 else ""
    count = f" ({len(found)})" if is_counted else ""
    text = f"{100 * statistics.fmean(found.values()):.1f}{mark}"
    return Cell(text, (deviation + count).strip(), (BEST,) if is_best else ())


def legend_of(rows: Sequence[Sequence[Cell]], counts: set[int], protocol: Protocol) -> tuple[tuple[str, str], ...]:
    """What the words and marks of a table mean."""
    text = " ".join(cell.text for row in rows for cell in row)
    found = [*protocols_legend([protocol])] if protocol.network in NETWORKS else []
    found += [(FRESH[is_tuned(protocol)], FRESH_MEANS[is_tuned(protocol)]), ("mean", "of the datasets shown")]
    found += [(BEST, "best trained backbone of its column")]
    found += [seeds_legend(counts)] * bool(counts)
    found += [about for about in (SAW_LEGEND, UNKNOWN_LEGEND) if about[0] in text]
    return (*found, MISSING_LEGEND)


def difference_grids(
    lines: Sequence[TransferRow], datasets: Sequence[TransferDataset], protocols: Sequence[Protocol]
) -> list[Grid]:
    """Trained minus untrained at the same seed, with a 95 % interval; nothing where there is no untrained learner."""
    found = []
    for protocol in protocols:
        pairs = [(line, fresh_of(line, lines)) for line in lines if line.is_trained]
        rows = [[gain(*pair, group, protocol) for group in mean_groups(datasets)] for pair in pairs]
        kept = [i for i, row in enumerate(rows) if any(row)]
        if not kept:
            continue
        title, heads, labels = without_constants(TRANSFER_HEADS, [pairs[i][0].labels for i in kept], keep=1)
        what = " · ".join(
            [*title, f"minus {FRESH[is_tuned(protocol)]}, points of {measure_of(protocol)} by {protocol.title}"]
        )
        found.append(
            paired_grid(
                *(what, heads, heads_of(datasets), labels, [rows[i] for i in kept], protocols_legend([protocol])),
                measure=measure_of(protocol),
            )
        )
    return found


def fresh_of(line: TransferRow, lines: Sequence[TransferRow]) -> TransferRow | None:
    """The row of the same learner before any training."""
    wanted = (*line.labels[:4], "", "untrained")
    return next((other for other in lines if other.labels == wanted), None)


def gain(
    line: TransferRow, fresh: TransferRow | None, datasets: Sequence[TransferDataset], protocol: Protocol
) -> Difference | None:
    """The paired difference of a row and its untrained learner."""
    theirs = fresh.means(datasets, Protocol(protocol.name, "online")) if fresh else {}
    return paired_by_seed(line.means(datasets, protocol), theirs)


def records_on(
    lines: Sequence[TransferRow], datasets: Sequence[TransferDataset], protocols: Sequence[Protocol]
) -> list[dict[str, Any]]:
    """One record for each row, dataset and protocol, in full precision."""
    return [record(line, lines, one, protocol) for protocol in protocols for line in lines for one in datasets]


def record(
    line: TransferRow, lines: Sequence[TransferRow], dataset: TransferDataset, protocol: Protocol
) -> dict[str, Any]:
    """The record of a row on a dataset under a protocol; n is 0 where there is no number."""
    scores, mark = line.means([dataset], protocol), mark_in(line, [dataset], protocol)
    fresh = fresh_of(line, lines) if line.is_trained else None
    return {
        "protocol": protocol.name,
        "network": protocol.network,
        **dict(zip((head.replace(" ", "_") for head in TRANSFER_HEADS), line.labels, strict=True)),
        "dataset": dataset.name,
        "train_samples": dataset.train,
        "test_samples": dataset.test,
        "mean": statistics.fmean(scores.values()) if scores else None,
        "std": statistics.stdev(scores.values()) if len(scores) > 1 else None,
        "n": len(scores),
        "seeds": list(scores),
        "saw_labels": mark == SEEN,
        "labels_unknown": mark == UNKNOWN,
        **difference_fields("minus_untrained", gain(line, fresh, [dataset], protocol)),
    }


def notes_on(lines: Sequence[TransferRow], datasets: Sequence[TransferDataset]) -> list[str]:
    """What a reader has to know: rows that were judged on none of these."""
    left = sum(not any(dataset in datasets for dataset, _ in line.numbers) for line in lines if line.is_trained)
    return [f"not judged on any of these: {plural(left, 'trained backbone')}"] * bool(left)
