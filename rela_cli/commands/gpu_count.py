"""`rela doctor --gpu`: what a training step of some settings launches on a GPU; it needs neither a GPU nor the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rela_cli.config.compose import compose
from rela_cli.config.schema import Config

if TYPE_CHECKING:
    from rela_cli.training.step_count import StepCount
    from rela_cli.training.trainee import Sizes

IMAGE, TARGET, CLASSES = 32, 512, 10  # pixels, width of the targets and classes where the data are not looked at
LAUNCH = 5e-6  # seconds of the host's time for each operator, an estimate
WHAT = {
    "batch": "the images of the batch are gathered",
    "switch": "is phase 1 over?",
    "views": "crops, colours, blur",
    "forward": "the loss",
    "backward": "its gradients",
    "probe": "the linear probe that learns beside (probe.in_training)",
    "update": "finite? optimizer, target network",
    "keep": "the switch sees the loss",
}


def main(words: Sequence[str]) -> int:
    """Print the operators of each part of a step, and where the host waits; 1 if it waits where it should not."""
    from rela_cli.training.step_count import count_step
    from rela_cli.training.trainee import Sizes

    config = compose(list(words))
    size = config.dataset.options.get("image_size") or IMAGE
    sizes = Sizes(size, TARGET, CLASSES)
    steps = {phase: count_step(config, phase, sizes) for phase in phases(config)}
    print(f"{config.learner.name}, {config.method.name}, {config.optimizer.name}: batch {config.batch_size}, {size} px")
    print("Operators of one step on a GPU, counted on tensors without values; each is at least one kernel.\n")
    print("\n".join(table_lines(steps)))
    launches = as_ms([1e3 * LAUNCH * step.total for step in steps.values()])
    print(f"\nA launch takes the host about {1e6 * LAUNCH:.0f} us (an estimate): {launches} ms a step.")
    config, words = with_way(config)
    print(f"{words}\n{timings(config, sizes)}")
    found = {phase: step.waits + step.read_waits[1:] for phase, step in steps.items()}  # a read copies once
    waits = [f"  phase {phase}, {wait}" for phase, where in found.items() for wait in where]
    every = config.runtime.read_every_steps or 10
    once = f"The host waits for the GPU once in {every} steps, to read losses and flags by one copy"
    print("\n".join([f"{once}, and also in each step:", *waits] if waits else [f"{once}, and nowhere else."]))
    return int(bool(waits))


def table_lines(steps: dict[int, StepCount]) -> list[str]:
    """A line for each part of a step; a part that a phase does not have is a dash."""
    rows = {part: [step.operators.get(part) for step in steps.values()] for part in WHAT}
    found = {part: numbers for part, numbers in rows.items() if any(numbers)}
    head = f"{'part':<10}" + "".join(f"{f'phase {phase}':>9}" for phase in steps)
    lines = [table_line(part, [n or None for n in numbers], WHAT[part]) for part, numbers in found.items()]
    total = table_line("a step", [step.total for step in steps.values()], "")
    return [head, *lines, total, table_line("a read", [step.read for step in steps.values()], "every few steps")]


def table_line(part: str, numbers: Sequence[int | None], what: str) -> str:
    """A line of the table."""
    return (f"{part:<10}" + "".join(f"{'-' if n is None else n:>9}" for n in numbers) + f"   {what}").rstrip()


def with_way(config: Config) -> tuple[Config, str]:
    """The config with what runtime.step=auto comes to on this machine, and a line that says it; it may be tried."""
    from rela_cli.training import graph_trial

    if config.runtime.step != "auto":
        return config, f"runtime.step={config.runtime.step}, as it was asked for."
    is_here = graph_trial.on_gpu(config)
    why = graph_trial.reason_against(config, again=True) if is_here else "not tried here, where there is no GPU"
    found = f"steps are taken one by one, operator by operator: {why}" if is_here else why
    if not why:
        found = f"views, forward and backward pass as one CUDA graph ({graph_trial.path_of(config.method)})"
    runtime = replace(config.runtime, step="eager" if why else "graph")
    return replace(config, runtime=runtime), f"runtime.step=auto: {found}."


def timings(config: Config, sizes: Sizes) -> str:
    """Milliseconds of a step on the GPU, where there is one."""
    import torch

    from rela_cli.training.step_count import timed_step

    if not torch.cuda.is_available():
        return "There is no GPU here, so nothing was timed."
    found = [1e3 * timed_step(config, phase, sizes, "cuda") for phase in phases(config)]
    return f"Timed on {torch.cuda.get_device_name()}: {as_ms(found)} ms a step (runtime.step={config.runtime.step})."


def as_ms(numbers: Sequence[float]) -> str:
    """One number, or those of both phases."""
    return " and ".join(f"{number:.1f}" for number in numbers)


def phases(config: Config) -> tuple[int, ...]:
    """The phases that a run of these settings has."""
    return (2,) if config.is_plain else (1, 2)
