"""Datasets whose classes are numbers in a column of a table, as the Hugging Face hub has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rela_cli.data.base import Array, Dataset
from rela_cli.data.decoding.undecodable import say_once
from rela_cli.errors import ConfigError
from rela_cli.terminal import plural

MOST_CLASSES = 1_000_000  # where nothing but the numbers says how many there are


class LabelColumn(Dataset):
    """What these have in common: class names, and checks that the numbers are those of classes."""

    label_column: str
    files: dict[str, list[Path]]  # of each split, none where there is no such split
    numbers: dict[str, Array]  # labels that were read

    def read_column(self, split: str) -> Array:
        """The label column of a split, of whatever type."""
        raise NotImplementedError

    def read_classes(self, columns: Sequence[str], names: Callable[[], list[str] | None], no_test: str) -> None:
        """Class names by the files' own description, else the numbers that occur; or why there will be no numbers.

        columns: those that there are. names: what the description says. no_test: why nothing can be probed without one.

        Raises:
            ConfigError: a label that is no class number.
        """
        if self.label_column not in columns:
            self.why_unprobed = f"{self.files['train'][0]} has no column {self.label_column!r} ({', '.join(columns)}); "
            self.why_unprobed += "for numbers say dataset.label_column=NAME"
            return
        if self.is_unlabelled("train"):
            self.why_unprobed = f"column {self.label_column!r} of train holds no class: all its numbers are below 0"
            return
        named = names()
        self.check_labels(len(named) if named else MOST_CLASSES)
        self.classes = named or [str(i) for i in range(int(self.column_of("train").max()) + 1)]
        self.check_labels(len(self.classes))
        if not self.files["test"]:
            self.why_unprobed = no_test
        elif self.is_unlabelled("test"):
            self.why_unprobed = f"column {self.label_column!r} of test holds no class: all its numbers are below 0"

    def is_unlabelled(self, split: str) -> bool:
        """Whether all labels of a split are below 0, which is how the hub says that there are none."""
        return bool((self.column_of(split) < 0).all())

    def check_labels(self, classes: int) -> None:
        """Labels number the classes from 0 on.

        Raises:
            ConfigError: one does not, with its row.
        """
        for split, files in self.files.items():
            labels = self.column_of(split) if files else np.empty(0)
            wrong = np.flatnonzero((labels < 0) | (labels >= classes))
            if len(wrong) and not self.is_unlabelled(split):
                raise ConfigError(
                    f"column {self.label_column!r} holds {labels[wrong[0]]} in row {wrong[0]} of {split} "
                    f"({plural(len(wrong), 'row')} of this kind); class numbers must be from 0 to {classes - 1}"
                )

    def column_of(self, split: str) -> Array:
        """The label column of a split: (N,) int64."""
        if split not in self.numbers:
            labels = self.read_column(split)
            if not np.issubdtype(labels.dtype, np.integer):
                raise ConfigError(
                    f"column {self.label_column!r} of {split} does not hold class numbers in every row but "
                    f"{labels.dtype}; say dataset.label_column=NAME"
                )
            self.numbers[split] = labels.astype(np.int64)
        return self.numbers[split]

    def labels(self, split: str) -> Array | None:
        """The labels of a split; None where it has none."""
        if self.classes is None or not self.files[split] or self.is_unlabelled(split):
            return None
        return self.column_of(split)


def described_names(metadata: Mapping[bytes, bytes], column: str) -> list[str] | None:
    """Class names from the description that the hub puts into a file; None where there is none that can be read."""
    if b"huggingface" not in metadata:
        return None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError):
        names = [None]
    if names is None or (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return names
    say_once(f"the description of column {column!r} in the files cannot be read: classes are called by number")
    return None
