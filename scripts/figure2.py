"""The paper's Figure 2, as we read its caption: less varied samples and softer labels make training converge faster.

    python scripts/figure2.py [FOLDER]        writes figure2.png, figure2.svg and figure2.json; seconds on one core

Two classes, y = +1 or -1 with equal chance, x | y ~ N(y mu, sigma^2 I) in two dimensions, |mu| = 1 and sigma = 0.7.
The learner is logistic regression without a bias, so its two weights are the whole landscape; it starts at zero, is
trained by SGD with one fresh sample a step, and is validated on the *original* mixture.

(a) Modified samples: the variance of the training samples is shrunk to a share of sigma^2.
(b) Modified targets: the label becomes (1 - rho) y + rho E[y | x], after a tenth of the labels was flipped.

(b) loses nothing: its best weights are the original's. (a) does: shrunk samples look surer than the original's are, and
say nothing about the directions that they have lost. With classes that overlap more (sigma = 1) their loss falls first
and rises again, and from a start far off the line through the classes they are slower, not faster.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rela_cli.report.figures.style import (
    GRID,
    INK,
    SOFT,
    Label,
    margin_labels,
    matplotlib_settings,
    new_figure,
    save_figure,
    titled,
)

Array = NDArray[np.float64]

MU, SIGMA = np.array([1.0, 1.0]) / np.sqrt(2), 0.7
BAYES = 2 * MU / SIGMA**2  # the weights of E[y | x] = tanh(w x / 2)
START = np.zeros(2)
RATE, STEPS, REPEATS, SEED = 1.0, 120, 100, 0
VALIDATED = 1000  # samples of the original mixture
NOISE = 0.1  # share of labels flipped in (b)
SHARES = (1.0, 0.5, 0.25, 0.1)  # of sigma^2, in (a)
RHOS = (0.0, 0.5, 0.9, 1.0)  # in (b)
COLOURS = ("#3c444d", "#E69F00", "#56B4E9", "#0072B2")  # from the original to the strongest change
TICKS = (1, 2, 5, 10, 20, 50, 100)
CLOSE = 0.02  # nats above the Bayes weights: "there"


def samples(random: np.random.Generator, n: int, share: float = 1.0) -> tuple[Array, Array]:
    """(n, 2) points of a mixture whose variance is a share of sigma^2, and their classes (n,), +1 or -1."""
    y = random.choice([-1.0, 1.0], size=n)
    return y[:, None] * MU + np.sqrt(share) * SIGMA * random.standard_normal((n, 2)), y


def validation() -> tuple[Array, Array]:
    """The same points of the original mixture for every curve."""
    return samples(np.random.default_rng(SEED + 1), VALIDATED)


def losses(weights: Array, x: Array, y: Array) -> Array:
    """Mean logistic loss, in nats, of weights (..., 2) on points (n, 2) of classes (n,): (...)."""
    return np.asarray(np.logaddexp(0.0, -(weights @ x.T) * y).mean(-1))


def trained(share: float, rho: float, noise: float) -> Array:
    """The weights of REPEATS runs before each step and after the last: (STEPS + 1, REPEATS, 2).

    The same seed for every setting: curves differ in what is changed and not in their luck.
    """
    random = np.random.default_rng(SEED)
    weights, path = np.tile(START, (REPEATS, 1)), []
    for _ in range(STEPS):
        path.append(weights)
        x, y = samples(random, REPEATS, share)
        flipped = np.where(random.random(REPEATS) < noise, -y, y)
        target = (1 - rho) * flipped + rho * np.tanh(x @ MU / SIGMA**2)
        error = np.tanh((weights * x).sum(1) / 2) - target  # twice the gradient with respect to w x
        weights = weights - RATE * 0.5 * error[:, None] * x
    return np.stack([*path, weights])


def curves(settings: list[dict[str, float]]) -> list[dict[str, Any]]:
    """What each setting reaches: validation loss (median and quartiles over runs) at each step, and one path."""
    x, y = validation()
    bayes, found = float(losses(BAYES, x, y)), []
    for setting in settings:
        path = trained(**setting)
        low, middle, high = np.percentile(np.stack([losses(at, x, y) for at in path]), (25, 50, 75), axis=1)
        there = np.flatnonzero(middle <= bayes + CLOSE)
        first = int(there[0]) if len(there) else None
        found.append({**setting, "low": low, "loss": middle, "high": high, "path": path[:, 0], "first": first})
        found[-1]["bayes"] = bayes
    return found


def draw(found: list[list[dict[str, Any]]]) -> Any:
    """Loss against steps above, landscape and one path of each below; (a) on the left, (b) on the right."""
    figure, panels = new_figure(9.0, 6.6, nrows=2, ncols=2)
    notes = [
        "Two Gaussians in the plane, logistic regression, SGD with one sample a step at rate "
        f"{RATE:g}; validated on the original mixture",
        f"median and quartiles of {REPEATS} runs above, one of them below; "
        f"(b): {100 * NOISE:.0f} % of the labels flipped before relabelling",
    ]
    top = titled(figure, "Less varied samples and softer labels converge faster", notes, left=0.075)
    figure.subplots_adjust(left=0.075, right=0.89, top=top - 0.035, bottom=0.07, hspace=0.28, wspace=0.42)
    titles = ("(a) modified samples: variance of x | y", "(b) modified targets: share of E[y | x] in the label")
    for column, (title, group) in enumerate(zip(titles, found, strict=True)):
        names = [f"{one['share']:g} σ²" if column == 0 else f"ρ = {one['rho']:g}" for one in group]  # noqa: RUF001
        draw_losses(panels[column], group, names)
        panels[column].set_title(title, fontweight="bold")
        draw_landscape(panels[2 + column], group)
    return figure


def draw_losses(axes: Any, group: list[dict[str, Any]], names: list[str]) -> None:
    """Validation loss of each setting; the dashed line is that of the Bayes weights."""
    labels = []
    for one, name, colour in zip(group, names, COLOURS, strict=True):
        axes.fill_between(range(STEPS + 1), one["low"], one["high"], color=colour, alpha=0.13, lw=0)
        axes.plot(one["loss"], color=colour)
        labels.append(Label(float(one["loss"][-1]), name, colour, bold=True))
    axes.axhline(group[0]["bayes"], color=SOFT, ls="--", lw=1)
    labels.append(Label(group[0]["bayes"], "Bayes", SOFT))
    axes.set(
        xscale="log",
        xlim=(1, STEPS),
        ylim=(group[0]["bayes"] - 0.015, 0.5),
        xticks=TICKS,
        xticklabels=TICKS,
        xlabel="step",
        ylabel="validation loss, nats",
    )
    margin_labels(axes, labels)


def draw_landscape(axes: Any, group: list[dict[str, Any]]) -> None:
    """Contours of the validation loss over the two weights, and one run of each setting; the cross is the best."""
    x, y = validation()
    across, up = np.linspace(-1.2, 4.6, 61), np.linspace(-1.6, 4.4, 61)
    grid = np.stack(np.meshgrid(across, up), axis=-1)
    levels = group[0]["bayes"] + np.array([0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    axes.contour(across, up, losses(grid, x, y), levels=levels, colors=GRID, linewidths=1)
    for one, colour in zip(group, COLOURS, strict=True):
        axes.plot(*one["path"].T, color=colour, lw=1.2)
        axes.plot(*one["path"][-1], color=colour, marker="o", mec="white", zorder=4)
    axes.plot(*START, color=INK, marker="o", ms=4)
    axes.annotate("start", START, (-26, 5), textcoords="offset points", fontsize=8)
    axes.plot(*BAYES, color=INK, marker="+", ms=11, mew=2, zorder=5)
    axes.annotate("best", BAYES, (8, -12), textcoords="offset points", fontsize=8)
    axes.grid(visible=False)
    axes.set(xlabel="weight 1", ylabel="weight 2")


def facts(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Settings, and for each curve when it is there, where it ends, and every tenth step of its median."""
    setting = {
        "mu": MU.tolist(),
        "sigma": SIGMA,
        "rate": RATE,
        "steps": STEPS,
        "runs": REPEATS,
        "start": START.tolist(),
    }
    lines = [
        {
            "variance_share": one["share"],
            "rho": one["rho"],
            "label_noise": one["noise"],
            f"first_step_within_{CLOSE:g}_of_bayes": one["first"],
            "last_loss": round(float(one["loss"][-1]), 4),
            "loss_each_10_steps": [round(float(value), 4) for value in one["loss"][::10]],
        }
        for group in found
        for one in group
    ]
    return {"setting": setting, "bayes_loss": round(found[0][0]["bayes"], 4), "curves": lines}


def main(folder: Path) -> None:
    """Compute, draw, and say what came out."""
    modified_samples = curves([{"share": share, "rho": 0.0, "noise": 0.0} for share in SHARES])
    modified_targets = curves([{"share": 1.0, "rho": rho, "noise": NOISE} for rho in RHOS])
    found = [modified_samples, modified_targets]
    with matplotlib_settings():
        written = save_figure(draw(found), folder / "figure2")
    (folder / "figure2.json").write_text(json.dumps(facts(found), indent=1) + "\n")
    print(*written, folder / "figure2.json", sep="\n")
    for one in (*modified_samples, *modified_targets):
        first = "never" if one["first"] is None else f"at step {one['first']}"
        print(f"variance {one['share']:g}, rho {one['rho']:g}: within {CLOSE:g} of Bayes {first}, "
              f"ends {one['loss'][-1] - one['bayes']:+.3f} above it")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/figure2"))
