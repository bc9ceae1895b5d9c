"""What a person reads: the plan before work, the summary after it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rela_cli.pipeline import Run, Step


def show_plan(run: Run, steps: list[Step]) -> None:
    """One line a stage: cached, to do, or not needed."""
    say(f"{run.folder.name}")
    for step in steps:
        state = "to do" if step.todo else "skip" if "no prior" in step.note or "has no" in step.note else "cached"
        say(f"  {step.stage:<10}{state:<8}{step.note}")
    if not any(step.todo for step in steps):
        say(f"  nothing to do; {run.folder}" if steps[-1].stage in ("train", "probe") else "  nothing to do")


def show_result(run: Run) -> None:
    """Numbers, cost, where things lie, and what to do next."""
    result = run.result or {}
    for protocol, number in result["probe"].items():
        untrained = ((result["baselines"].get("untrained") or {}).get(protocol) or {}).get("top1")
        beside = "" if untrained is None else f"   untrained {100 * untrained:.1f}"
        alone = ((result["baselines"].get("prior_alone") or {}).get(protocol) or {}).get("top1")
        beside += "" if alone is None else f", prior alone {100 * alone:.1f}"
        say(f"  top-1 {100 * number['top1']:5.1f} %  {protocol} ({number['network']}){beside}")
    if "probe_skipped" in result:
        say(f"  not probed: {result['probe_skipped']}")
    seconds = result["seconds"]
    say(f"  cost  {sum(seconds.values()):.1f} s: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items()) + f"; {flops(result)}")
    if result["switch_step"]:
        say(f"  phase 1 ended before step {result['switch_step']} of {result['steps']}")
    say(f"  files {run.folder}")
    say("  next  rela table")


def flops(result: dict[str, Any]) -> str:
    """The run's FLOPs, prior pass included."""
    total, unit = float(sum(result["flops"].values())), ""
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if total < 1000:
            break
        total /= 1000
    return f"{total:.3g} {unit}FLOP"


def say(line: str) -> None:
    """A line on stdout, at once."""
    print(line, flush=True)
    sys.stdout.flush()
