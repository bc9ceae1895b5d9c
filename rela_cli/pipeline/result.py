"""What result.json holds: numbers, costs, and everything that tables need to know of a run."""

from __future__ import annotations

from dataclasses import dataclass

from rela_cli.config.parts import import_target
from rela_cli.config.schema import Part
from rela_cli.data.base import Dataset
from rela_cli.pipeline.run import Run
from rela_cli.store.files import Facts
from rela_cli.store.versions import STAGES
from rela_cli.weights import locate, run_folder, seen

OF_TRAINING = ("steps", "samples_seen", "switch_step", "phase1_steps", "feature_dim", "target_dim", "collapsed")
OF_MACHINE = ("device", "precision", "threads", "world_size", "batch_per_rank")


@dataclass
class Numbers:
    """What stage probe has measured: the run's own numbers, the baselines, and what the own ones cost by account."""

    own: Facts
    baselines: Facts
    cost: Facts

    @classmethod
    def of_result(cls, result: Facts) -> Numbers:
        """The numbers that a result.json has."""
        cost = {account: result.get(account, {}).get("probe", 0) for account in ("seconds", "flops")}
        return cls(dict(result.get("probe", {})), dict(result.get("baselines") or {}), cost)


def run_label_facts(run: Run) -> Facts:
    """Which labels the prior has seen, and the method itself has trained with."""
    uses_labels = getattr(import_target(run.config.method), "uses_labels", False)
    own = [str(run.dataset.label_set)] if uses_labels else []
    return seen.label_facts(run.config.prior, run.dataset, own)


def prior_facts(run: Run) -> Facts:
    """What result.json says of the prior."""
    prior = run.config.prior
    return {
        "prior": locate.shown_name(prior),
        **(run.brought.result_facts if run.brought else run_of(prior)),
        **run_label_facts(run),
    }


def run_of(prior: Part) -> Facts:
    """The name of the run that a prior is the backbone of."""
    return {"prior_run": run_folder.run_name(prior)} if prior.name == "rela_run" else {}


def skipped(dataset: Dataset) -> Facts:
    """How many images were left out because they cannot be decoded, which, and why."""
    return {"count": sum(map(len, dataset.skipped.values())), "files": dataset.skipped}


def costs(run: Run, probe_cost: Facts) -> dict[str, Facts]:
    """The seconds and FLOPs that each stage's artifact cost to make, also when it came from the cache."""
    found: dict[str, Facts] = {"extract": {}, "transport": {}, "train": run.trained or {}, "probe": probe_cost}
    if not run.config.is_plain:
        made = run.brought.folder.facts["made"]["features"] if run.brought else run.features.manifest
        found |= {"extract": made or {}, "transport": run.targets.manifest or {}}
    if run.config.has_views:
        made = run.brought.folder.facts["made"]["views"] if run.brought else run.views.manifest
        found["extract"] = summed(found["extract"], made or {})
        found["transport"] = summed(found["transport"], run.view_targets.manifest or {})
    if run.config.has_tokens:
        found["extract"] = summed(found["extract"], run.artifacts.tokens.manifest or {})
        found["transport"] = summed(found["transport"], run.artifacts.token_targets.manifest or {})
    return found


def summed(*facts: Facts) -> Facts:
    """The seconds and FLOPs of several artifacts together."""
    return {account: sum(one.get(account, 0) for one in facts) for account in ("seconds", "flops")}


def result_of(run: Run, prior: Facts, numbers: Numbers, spent: Facts) -> Facts:
    """The content of result.json; `prior` is from `prior_facts`, `spent` the seconds that this call took by stage."""
    c, dataset, facts, cost = run.config, run.dataset, run.trained or {}, costs(run, numbers.cost)
    return {
        "status": "finished",
        "name": run.name,
        "fingerprint": run.hash,
        **{group: getattr(c, group).name for group in ("dataset", "learner", "method")},
        "called": {**run.called, **locate.file_name(c.prior)},
        **prior,
        "transport": None if c.is_plain else c.transport.name,
        **{key: getattr(c, key) for key in ("budget", "seed", "epochs", "batch_size")},
        "train_samples": run.lengths.train_samples,
        "test_samples": dataset.count("test"),
        "classes": len(dataset.classes) if dataset.classes else None,
        **{name: facts.get(name) for name in OF_TRAINING},
        "probe": numbers.own,
        **({"skipped": skipped(dataset)} if dataset.on_error == "skip" else {}),
        **({} if run.can_probe else {"probe_skipped": dataset.why_unprobed}),
        "baselines": numbers.baselines,
        "seconds": {stage: cost[stage].get("seconds", 0.0) for stage in STAGES},
        "seconds_now": spent,
        "flops": {stage: cost[stage].get("flops", 0) for stage in STAGES},
        "peak_memory_bytes": facts.get("peak_memory_bytes"),
        **{name: facts.get(name) for name in OF_MACHINE},
        "settings": run.settings,
    }
