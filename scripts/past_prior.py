"""Where a learner ends above its own prior alone: points above it, against the steps.

    python scripts/past_prior.py OUTPUTS... [--prior patches,random] [--protocol lbfgs] [--to FOLDER]

writes past-prior.png and past-prior.svg of the finished runs at some places (what `rela table` takes): a line for each
prior, learner width and number of train images, of the default switch and transport. The prior alone is judged by the
same protocol, on the targets that the learner is matched to: of a wider learner they are more.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rela_cli as rela
from rela_cli.report.figures.series import DASHES
from rela_cli.report.figures.style import (
    SOFT,
    Label,
    margin_figure,
    margin_labels,
    matplotlib_settings,
    room_for_ticks,
    save_figure,
    style_of,
)
from rela_cli.store.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = tuple[str, int, int]  # prior, features of the learner, train images
Curve = list[tuple[int, float, float, int]]  # steps, mean points above the prior alone, deviation, seeds


def curves(places: Iterable[str], priors: Sequence[str], protocol: str) -> dict[Line, Curve]:
    """The points of each line, by steps; runs that differ in their seed alone are one point."""
    found: dict[Line, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rela.table(*places):
        run = read_json(Path(row["run"]) / "result.json") or {}
        if (
            row["protocol"] == protocol
            and row["prior"] in priors
            and row["prior_alone"] is not None
            and is_default(run)
        ):
            line = row["prior"], int(run["feature_dim"]), row["train_samples"]
            found[line][row["steps"]].append(100 * (row["top1"] - row["prior_alone"]))
    return {line: [point(steps, at[steps]) for steps in sorted(at)] for line, at in sorted(found.items())}


def is_default(run: Mapping[str, object]) -> bool:
    """Whether a run has the default transport, matching and switch."""
    settings: Mapping[str, Mapping[str, object]] = run.get("settings") or {}  # type: ignore[assignment]
    transport, matching = settings.get("transport", {}), settings.get("matching", {})
    names = transport.get("name"), matching.get("name"), settings.get("switch", {}).get("name")
    usual = transport.get("power", 1) == 1 and matching.get("targets", "cached") == "cached"
    return usual and names == ("whitening", "cosine", "adaptive")


def point(steps: int, values: Sequence[float]) -> tuple[int, float, float, int]:
    """Steps, mean, deviation (0 of one seed), and how many seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return steps, statistics.fmean(values), deviation, len(values)


def draw(found: Mapping[Line, Curve], protocol: str) -> Figure:
    """A line for each learner; above the dashed line it has passed its prior."""
    names = {line: f"{line[0]}, {line[1]} features, {line[2]:,} images" for line in found}
    ends = {line: curve[-1] for line, curve in found.items()}
    labels = [
        Label(mean, f"{names[line]} {mean:+.1f}", style_of(line[0]).colour, bold=True, x=steps)
        for line, (steps, mean, _, _) in ends.items()
    ]
    labels.append(Label(0.0, "the prior alone", SOFT))
    notes = [f"top-1 by {protocol} minus that of the prior alone, in points", seeds_text(found)]
    figure, axes = margin_figure("Past the prior", notes, labels)
    for number, (line, curve) in enumerate(found.items()):
        steps, means, deviations, _ = zip(*curve, strict=True)
        style, dash = style_of(line[0]), DASHES[number % len(DASHES)]
        axes.errorbar(steps, means, deviations, color=style.colour, marker=style.marker, ls=dash, capsize=2.5)
    axes.axhline(0, color=SOFT, ls="--", lw=1)
    axes.set(xscale="log", xlabel="steps", ylabel="points above the prior alone")
    ticks = sorted({steps for curve in found.values() for steps, *_ in curve})
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks])
    axes.set_xticks([], minor=True)
    margin_labels(axes, labels)
    room_for_ticks(figure)
    return figure


def seeds_text(found: Mapping[Line, Curve]) -> str:
    """How many seeds the points have."""
    counts = sorted({n for curve in found.values() for *_, n in curve})
    return "one seed" if counts == [1] else f"mean and deviation over {counts[0]} to {counts[-1]} seeds"


def main() -> None:
    """Draw, and say what is drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+")
    parser.add_argument("--prior", default="patches")
    parser.add_argument("--protocol", default="lbfgs")
    parser.add_argument("--to", default="outputs/past-prior", type=Path)
    asked = parser.parse_args()
    found = curves(asked.places, asked.prior.split(","), asked.protocol)
    if not found:
        parser.exit(3, f"no finished run with prior {asked.prior} and protocol {asked.protocol} there\n")
    with matplotlib_settings():
        written = save_figure(draw(found, asked.protocol), asked.to / "past-prior")
    print(*written, sep="\n")
    for (prior, features, images), curve in found.items():
        text = ", ".join(f"{mean:+.1f} at {steps:,} (n {n})" for steps, mean, _, n in curve)
        print(f"{prior}, {features} features, {images:,} images: {text}")


if __name__ == "__main__":
    main()
