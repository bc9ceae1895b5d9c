"""What somebody typed and what changes nothing: a line each, before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rela_cli.config.schema import PROTOCOLS, WHOLE, Config
from rela_cli.distributed import ranks

OF_MATCHING = ("transport=", "transport.", "matching=", "matching.", "switch=", "switch.", "extract.")

OF_TOKENS = ("extract.token_grid=", "matching.token_weight=")

OF_TRACKERS = {"project": ("wandb", "mlflow", "trackio"), "entity": ("wandb",), "mode": ("wandb",), "uri": ("mlflow",)}

OF_SWEEPS = ("hydra/launcher=", "hydra.launcher.", "hydra/sweeper=", "hydra.sweeper.", "hydra.sweep.")


def without_effect(words: Sequence[str], config: Config) -> Iterator[str]:
    """All lines about a single run."""
    runtime = config.runtime
    yield from overruled(words)
    yield from of_sweeps(words)
    yield from of_other_protocols(words, config.probe.protocols)
    yield from of_no_prior(words, config.is_plain)
    yield from of_other_trackers(words, config.logger.trackers)
    yield from of_no_tokens(words, config)
    yield from of_norm(words, runtime.norm, ranks.norm_groups(runtime.norm, runtime.devices))


def overruled(words: Sequence[str]) -> Iterator[str]:
    """Keys that are typed more than once with different values: the last one holds, unless it adds to the others."""
    last = {word.partition("=")[0]: word for word in words if "=" in word}
    for word in words:
        if (after := last.get(word.partition("=")[0], word)) != word and "=extend_list(" not in after:
            yield f"{word} has no effect: {after} comes after it"


def of_sweeps(words: Sequence[str]) -> Iterator[str]:
    """Settings of a sweep in what is a single run."""
    for word in words:
        if word.startswith(OF_SWEEPS):
            yield f"{word} has no effect without -m: this is a single run"


def of_other_protocols(words: Sequence[str], chosen: Sequence[str]) -> Iterator[str]:
    """Keys of a probe protocol that is not among those chosen; they begin with its name."""
    idle = {f"probe.{protocol}_": protocol for protocol in (*PROTOCOLS, *WHOLE) if protocol not in chosen}
    if "finetune" not in chosen:
        idle["probe.label_share="] = "finetune"
    for word in words:
        for start, protocol in idle.items():
            if word.startswith(start):
                yield f"{word} has no effect: {protocol} is not one of probe.protocols=[{','.join(chosen)}]"


def of_no_prior(words: Sequence[str], is_plain: bool) -> Iterator[str]:
    """Settings of phase 1 in a run without a prior, which has no phase 1."""
    for word in words:
        if is_plain and word.startswith(OF_MATCHING):
            yield f"{word} has no effect: prior=none is the method by itself"


def of_no_tokens(words: Sequence[str], config: Config) -> Iterator[str]:
    """What says how tokens are made and matched, where there are none."""
    for word in words:
        if word.lstrip("+").startswith(OF_TOKENS) and not config.extract.tokens and not config.is_plain:
            yield f"{word} has no effect: it goes with extract.tokens=true"


def of_norm(words: Sequence[str], norm: object, groups: int) -> Iterator[str]:
    """A choice of batch norms where one process or machine has the whole batch; else what it makes of the run."""
    typed = any(word.lstrip("+").startswith("runtime.norm=") for word in words)
    if groups == 1 and norm not in ("global", 1) and typed:
        alone = "process" if norm == "local" else "machine"
        yield f"runtime.norm={norm} has no effect: this run has one {alone}, whose batch norms see the whole batch"
    if groups > 1 and norm != groups:
        yield f"runtime.norm={norm}: batch norms see 1/{groups} of a batch each; runtime.norm={groups} does so anywhere"


def of_other_trackers(words: Sequence[str], used: Sequence[str]) -> Iterator[str]:
    """Keys of trackers that are not used."""
    for word in words:
        key = word.partition("=")[0].lstrip("+").removeprefix("logger.")
        readers = OF_TRACKERS.get(key, ()) if word.lstrip("+").startswith("logger.") else ()
        if readers and not set(readers) & set(used):
            yield f"{word} has no effect: only logger={' or logger='.join(readers)} reads it"
