"""What a person reads: the plan before work, the summary after it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rela_cli.distributed import ranks
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.to_do import StageState, similar_finished_run
from rela_cli.store.files import section
from rela_cli.terminal import as_si, printable

BRIEF = "RELA_BRIEF"  # set in the cells of a sweep: two lines of plan, numbers and cost
COMPONENTS_SHOWN = ("16", "64", "512")  # numbers of components whose explained variance is worth a line


def show_stages(run: Run, states: Sequence[StageState]) -> None:
    """One line a stage: cached, to do, or not needed; of a sweep's cell, one for all."""
    say(run.folder.name)
    to_do = [state.stage for state in states if state.state == "to do"]
    if os.environ.get(BRIEF):
        say(f"  to do {', '.join(to_do)}" if to_do else "  nothing to do")
        return
    for state in states:
        say(f"  {state.stage:<10}{state.state:<8}{state.note}")
    if "train" in to_do and (known := similar_finished_run(run)):
        seconds, name = known
        say(f"  training will take about {seconds:.0f} s, if it goes as fast as {name}")
    if not to_do:
        say("  nothing to do" + (f"; see {run.folder}" if states[-1].stage in ("train", "probe") else ""))
        if states[-1].stage == "probe":
            show_numbers(run)


def show_targets(run: Run) -> None:
    """What the prior and the transport gave: widths, explained variance, dead components, and where they lie."""
    if features := run.features.manifest:
        say(f"  features  {run.lengths.train_samples} x {features['feature_dim']}  {run.features.folder}")
    if run.config.has_views and (views := run.views.manifest):
        shape = f"{run.lengths.train_samples} x {views['views']} x {views['feature_dim']}"
        say(f"  views     {shape}  {run.views.folder}")
    if run.config.has_tokens and (maps := run.artifacts.tokens.manifest):
        shape = f"{run.lengths.train_samples * maps.get('views', 1)} x {maps['cells']} x {maps['channels']}"
        say(f"  tokens    {shape}  {run.artifacts.tokens.folder}")
    if targets := run.targets.manifest:
        shares = [
            f"{k} {100 * share:.1f} %"
            for k, share in targets.get("explained_variance", {}).items()
            if k in COMPONENTS_SHOWN
        ]
        explained = f"; variance explained by the first {', '.join(shares)}" if shares else ""
        dead = f", {targets['dead']} dead" if targets["dead"] else ""
        say(f"  targets   {run.lengths.train_samples} x {targets['dim']}{dead}{explained}  {run.targets.folder}")


def show_result(run: Run) -> None:
    """Numbers, cost, where things lie, and what to do next."""
    result = run.result or {}
    show_numbers(run)
    say(f"  cost  {cost(result)}")
    if os.environ.get(BRIEF):
        return
    if result["phase1_steps"]:
        rest = result["steps"] - result["phase1_steps"]
        say(f"  steps {result['phase1_steps']} of matching, then {rest} of {result['method']}")
    say(f"  files {run.folder}")
    if result["probe"]:
        say(f"  next  {table_of(run)}")


def show_numbers(run: Run) -> None:
    """top-1 by protocol beside what it is compared with, or why there is none."""
    result = run.result or {}
    for key, number in (result.get("probe") or {}).items():
        say(f"  top-1 {100 * number['top1']:5.1f} %  {key} ({number['network']})  {comparison_words(result, key)}")
    if "probe_skipped" in result:
        say(f"  not probed: {result['probe_skipped']}")


def table_of(run: Run) -> str:
    """The command whose table has this run in it, wherever it lies."""
    paths = run.config.paths
    elsewhere = ["--outputs", paths.outputs] if paths.outputs != "outputs" else []
    return shlex.join(["rela", "table", *([paths.run] if paths.run else elsewhere)])


def cost(result: Mapping[str, Any]) -> str:
    """'8.8 s (extract 1.2, train 7.6); 131 GFLOP', of whatever a result.json holds; empty where it says nothing."""
    seconds, flops = (
        {stage: float(n) for stage, n in section(result, key).items() if isinstance(n, int | float) and abs(n) < 1e30}
        for key in ("seconds", "flops")
    )
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    parts = [f"{sum(seconds.values()):.1f} s ({stages})"] if seconds else []
    return "; ".join([*parts, as_si(sum(flops.values()), "FLOP")] if flops else parts)


def comparison_words(result: Mapping[str, Any], key: str) -> str:
    """What the untrained learner and the prior alone reach under the same protocol."""
    words = []
    for name in ("untrained", "prior_alone"):
        number = section(section(section(result, "baselines"), name), key.partition("@")[0]).get("top1")
        words += [f"{name.replace('_', ' ')} {100 * number:.1f}"] if isinstance(number, float) else []
    return ", ".join(words)


def say(line: str) -> None:
    """A line on stdout, at once, from the first of several ranks."""
    if ranks.is_first():
        print(printable(line, lines=True), flush=True)
