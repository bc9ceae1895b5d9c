"""Whose labels a prior has seen: what its card says today, for results, tables and the line before work.

A number is not comparable where the prior was trained with the very labels that judge it, and nobody should take it
for clean where nothing is known: a card without `labels_seen` means unknown, `labels_seen=[]` means none were used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli.config.schema import PRETRAINED, RANDOM, Part
from rela_cli.data.labels import KNOWN
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.store.files import Facts, read_whole
from rela_cli.store.integrity import digest
from rela_cli.store.older_results import is_unknown
from rela_cli.weights.run_folder import run_folder

if TYPE_CHECKING:
    from rela_cli.data.base import Dataset


def labels_seen(prior: Part) -> tuple[str, ...] | None:
    """The label sets that the prior's training used; None when neither its card nor its run says.

    A run of ours passes on what its own prior had seen. An ensemble has seen what its members have.
    """
    if prior.members:
        found = [labels_seen(member) for member in prior.members]
        return None if None in found else union(found)
    weights, card = prior.options.get("weights"), prior.card
    if weights == RANDOM:
        return ()
    if prior.options.get("run"):
        result = read_whole(run_folder(prior) / "result.json")
        told = None if not result or is_unknown(result) else ()
        known = (*result.get("labels_seen", ()), *(card.labels_seen or ()))
        return tuple(dict.fromkeys(known)) if known or card.labels_seen is not None else told
    if card.labels_seen is None and is_published(prior):
        return card.pretrained_labels_seen
    return () if card.labels_seen is None and weights is None else card.labels_seen


def is_published(prior: Part) -> bool:
    """Whether the card's facts on weights hold: they are the published ones, not some other file of the user's."""
    weights, wanted = prior.options.get("weights"), prior.card.sha256
    if weights == PRETRAINED or not (weights and wanted):
        return weights == PRETRAINED
    path = Path(weights).expanduser()
    return path.is_file() and digest(path).startswith(wanted)


def label_facts(prior: Part, dataset: Dataset, own: Sequence[str] = ()) -> Facts:
    """What result.json says of it; `own` are label sets that the method itself trains with, which a run passes on."""
    found = [labels_seen(single) for single in prior.singles]
    seen = union(found)  # of some members it may be known
    return {
        "prior_labels_seen": [*seen],
        "labels_seen": [*seen, *own],
        "labels_unknown": None in found or any(single.card.labels_unknown for single in prior.singles),
        "prior_saw_labels": dataset.label_set is not None and dataset.label_set in seen,
    }


def union(found: Sequence[Sequence[str] | None]) -> tuple[str, ...]:
    """Every label set once."""
    return tuple(dict.fromkeys(name for names in found for name in names or ()))


def is_right(result: Facts, prior: Part, dataset: Dataset) -> bool:
    """Whether a finished run's record says of the prior what its card says today."""
    before = {"prior_labels_seen": result.get("labels_seen"), "labels_unknown": is_unknown(result)}  # by older versions
    today = label_facts(prior, dataset)
    keys = ("prior_labels_seen", "labels_unknown", "prior_saw_labels")
    return all({**before, **result}.get(key) == today[key] for key in keys)


def note(prior: Part, dataset: Dataset) -> str | None:
    """A line for people where a number will not be comparable, or where nobody knows; None where all is well.

    Raises:
        ConfigError: the card names a label set that nobody knows, and is close to one that is known.
    """
    check(prior)
    lines = [line for single in prior.singles if (line := note_of(single, dataset, bool(prior.members)))]
    return "; ".join(lines) or None


def note_of(prior: Part, dataset: Dataset, is_member: bool) -> str | None:
    """The line about one prior."""
    facts = label_facts(prior, dataset)
    if not dataset.label_set:
        return None
    if facts["prior_saw_labels"]:
        return f"prior={prior.name} was trained with the labels of this dataset ({dataset.label_set}): tables mark it"
    if facts["labels_unknown"]:
        own_file = prior.card.pretrained_labels_seen is not None  # the card is about other weights than these
        whose = f" prior.weights={prior.options['weights']}" if own_file else ""
        key = (
            f"{{name: {prior.name}, card.labels_seen: [cifar10]}}" if is_member else "prior.card.labels_seen=[cifar10]"
        )
        return (
            f"unknown: nobody says which labels prior={prior.name}{whose} was trained with, so tables mark it; "
            f"say {key}, or [] for none"
        )
    return None


def check(prior: Part) -> None:
    """Raises what `note` says."""
    for name in (name for single in prior.singles for name in single.card.labels_seen or ()):
        if name not in KNOWN and (close := did_you_mean(name, KNOWN)):
            raise ConfigError(f"prior.card.labels_seen=[{name}]{close} (known: {', '.join(KNOWN)})")
