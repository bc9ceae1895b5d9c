"""What a run has still to do: one line a stage, and how long its training may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from rela_cli.config.schema import LIVE
from rela_cli.pipeline.artifacts import kinds_of
from rela_cli.pipeline.run import Run, yaml_ready
from rela_cli.store.files import Facts, read_json, section
from rela_cli.store.versions import STAGES
from rela_cli.terminal import plural

EXTRACT, TRANSPORT = slice(0, None, 2), slice(1, None, 2)  # of `kinds_of`, what these stages make


@dataclass(frozen=True)
class StageState:
    """A stage, and whether it is "to do", "cached", or to "skip"."""

    stage: str
    state: str
    note: str


def stage_states(run: Run, until: str) -> list[StageState]:
    """The stages up to `until`, and what is to be done in each."""
    c, n = run.config, run.lengths
    trained = run.trained is not None and until in ("train", "probe")  # then its inputs need not be there
    rest = run.missing_probes() or run.missing_baselines() or not run.result
    images = f"{n.subset_size} of {plural(n.train_samples, 'image')}"
    counts = f"{plural(n.total_steps, 'step')} of {c.batch_size}; {images} an epoch"
    protocols = ", ".join(c.probe.protocols) if run.can_probe else f"no numbers: {run.dataset.why_unprobed}"
    views = f"; {c.extract.views} light views" * c.has_views + f"; maps of {c.extract.token_grid}" * c.has_tokens
    states = [
        prior_state(run, "extract", trained or is_made(run, EXTRACT), run.called["prior"] + views),
        prior_state(run, "transport", trained or is_made(run, TRANSPORT), c.transport.name),
        StageState("train", "cached" if run.trained else "to do", f"{counts}, {plural(c.epochs, 'epoch')}"),
        StageState("probe", "to do" if rest else "cached", protocols),
    ]
    return states[: STAGES.index(until) + 1]


def prior_state(run: Run, stage: str, is_done: bool, note: str) -> StageState:
    """The state of a stage that only a run with a prior needs."""
    if run.config.is_plain:
        return StageState(stage, "skip", "the plain method has no prior")
    if run.brought and stage == "extract":
        return StageState(stage, "skip", f"{note}: the efficient dataset brings its targets")
    return StageState(stage, "cached" if is_done else "to do", note)


def is_made(run: Run, stage: slice) -> bool:
    """Whether all entries that a stage, EXTRACT or TRANSPORT, makes are there."""
    return all(getattr(run.artifacts, kind).manifest is not None for kind in kinds_of(run.config)[stage])


def standing(run: Run) -> str:
    """From where the same command would go on; told by names alone, in the middle of anything."""
    found = [path.name.split("-")[1] for path in run.folder.glob("checkpoint-*-*.safetensors")]
    if found and not (run.folder / "backbone.safetensors").exists():
        return f"step {int(max(found))} of {run.lengths.total_steps}"
    singles = () if run.config.is_plain else run.artifacts.singles
    is_begun = any(getattr(one, kind).part.exists() for one in singles for kind in kinds_of(run.config)[EXTRACT])
    return "the last whole block of the extraction" if is_begun else "the last finished stage"


def has_work(states: Sequence[StageState]) -> bool:
    """Whether any stage is still to be done."""
    return any(state.state == "to do" for state in states)


def similar_finished_run(run: Run) -> tuple[float, str] | None:
    """Seconds that training would take at the speed of the latest finished run like this one, and that run's name."""
    found, own = [], yaml_ready(run.settings)  # JSON knows no tuples
    for path in (run.outputs / "runs").glob("*-*/result.json"):  # without the link `latest`
        result = read_json(path) or {}
        settings, seen = section(result, "settings"), result.get("samples_seen")
        seconds = section(result, "seconds").get("train")
        same = all(settings.get(key) == own[key] for key in ("learner", "method", "dataset", "batch_size"))
        same = same and live_prior(settings) == live_prior(own)
        if same and is_positive(seen) and is_positive(seconds):
            found.append((path.stat().st_mtime, seconds / seen, path.parent.name))
    return (max(found)[1] * run.lengths.samples_seen, max(found)[2]) if found else None


def live_prior(settings: Facts) -> Any:
    """The prior where it takes part in training; a cached one takes no time there."""
    return settings.get("prior") if section(settings, "matching").get("targets") == LIVE else None


def is_positive(value: Any) -> TypeGuard[float]:
    """Whether a value of a file is a number above 0."""
    return isinstance(value, int | float) and 0 < value < math.inf
