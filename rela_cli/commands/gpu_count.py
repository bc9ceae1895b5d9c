"""`rela doctor --gpu`: what a training step of some settings launches on a GPU; it needs neither a GPU nor the data."""

from __future__ import annotations

from collections.abc import Sequence

from rela_cli.config.compose import compose
from rela_cli.config.schema import Config

IMAGE, TARGET, CLASSES = 32, 512, 10  # pixels, width of the targets and classes where the data are not looked at
HINT = "each operator is at least one kernel, about 5 us of the host's time; counted on tensors without values"


def main(words: Sequence[str]) -> int:
    """Print the operators of each part of a step, and where the host waits; 1 if it does."""
    from rela_cli.training.step_count import STEP_PARTS, StepSizes, count_step

    config = compose(list(words))
    size = config.dataset.options.get("image_size") or IMAGE
    steps = {phase: count_step(config, phase, StepSizes(size, TARGET, CLASSES)) for phase in phases(config)}
    print(f"{config.learner.name}, {config.method.name}, {config.optimizer.name}: batch {config.batch_size}, {size} px")
    print(f"{'':<9}" + "".join(f"{f'phase {phase}':>9}" for phase in steps))
    for part in STEP_PARTS:
        print(f"{part:<9}" + "".join(f"{step.operators.get(part, 0):>9}" for step in steps.values()))
    print(f"{'all':<9}" + "".join(f"{step.total:>9}" for step in steps.values()))
    print(f"{'a read':<9}" + "".join(f"{step.read:>9}" for step in steps.values()))
    waits = [f"phase {phase}, {wait}" for phase, step in steps.items() for wait in step.waits]
    print("\n".join(["the host waits:", *waits] if waits else ["the host waits for nothing"]))
    print(HINT)
    return int(bool(waits))


def phases(config: Config) -> tuple[int, ...]:
    """Those that a run of these settings has."""
    return (2,) if config.is_plain else (1, 2)
