"""The plots: what is drawn for which runs, and that it is drawn where it should be."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rela_cli.commands import plot
from rela_cli.errors import ConfigError, RelaError
from rela_cli.report.figures import plots, series, training
from rela_cli.report.figures.style import (
    PRIOR_STYLES,
    SPARE_STYLES,
    lighter,
    matplotlib_settings,
    new_figure,
    number_points,
    push_apart,
    style_of,
)
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import Protocol, Result, results_of
from tests.conftest import NO_TORCH, Rela
from tests.report.made_runs import Make, make

__all__ = ["make"]  # a fixture

LBFGS = Protocol("lbfgs", "online")
STEPS = 40


def leave(folder: Path, switch_step: int | None = None, targets: bool = False) -> None:
    """What a run leaves beside result.json: curves, a trace with an adaptive switch's averages, a spectrum."""
    lines = []
    for step in range(10, STEPS + 1, 10):
        phase = 2 if switch_step is None or step >= switch_step else 1
        lines.append(
            {"step": step, "phase": phase, "loss": 5.0 if phase == 2 else 0.5, "effective_rank": 8, "knn": 0.5}
        )
    write_lines(folder / "metrics.jsonl", lines)
    inputs = {}
    if switch_step is not None:
        trace = [{"step": s, "loss": 1 / s, "fast": 1 - s / 99, "slow": 2 - s / 50, "rho": 0.5} for s in range(1, 30)]
        write_lines(folder / "switch.jsonl", trace)
    if targets:
        inputs = {"targets": "abc", "features": "def"}
        entry = folder.parent.parent / "cache" / "targets" / "abc"
        entry.mkdir(parents=True, exist_ok=True)
        save_file({"eigenvalues": np.array([6.0, 3.0, 1.0])}, entry / "map.safetensors")
        (entry / "manifest.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", "inputs": inputs, "command": "rela train"}))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def project(make: Make, tmp_path: Path) -> Path:
    """Plain at two budgets and one ReLA cell, two seeds; costs in FLOPs, all files of a run."""
    for seed in (0, 1):
        for budget, train in ((0.5, 100.0), (1.0, 200.0)):
            flops = {"extract": 0, "transport": 0, "train": train, "probe": 9}
            leave(make(0.5 + budget / 10, "none", budget, seed, untrained=0.2, flops=flops))
        flops = {"extract": 20, "transport": 1, "train": 90.0, "probe": 9}
        fields = {"flops": flops, "switch_step": 25, "target_dim": 2, "steps": STEPS}
        leave(make(0.7, "patches", 0.5, seed, prior_alone=0.3, **fields), switch_step=25, targets=True)
    return tmp_path / "outputs"


def runs_in(project: Path) -> list[Result]:
    return results_of(collect([project]))


def draw(project: Path, kind: str, axis: str = "flops") -> list[Any]:
    with matplotlib_settings():
        return [made.draw() for made in plots.plots(runs_in(project), [LBFGS], axis, [kind])]


def texts(axes: Any) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def test_all_kinds_as_png_and_svg(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(project), "--out", str(tmp_path / "plots")]) == 0
    stems = {"budget-lbfgs", "cost-flops-lbfgs", "training-b0.5", "training-b1", "variance", "trace-b0.5"}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {s + end for s in stems for end in (".png", ".svg")}
    assert (tmp_path / "plots" / "variance.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plots" / "variance.svg").read_text()
    assert "6 plots" in capsys.readouterr().out


def test_the_same_runs_give_the_same_bytes(project: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        plot.main([str(project), "--kind=budget,trace", "--out", str(tmp_path / name)])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_budget_has_lines_error_bars_and_references(project: Path) -> None:
    (figure,) = draw(project, "budget")
    (axes,) = figure.axes
    plain, patches = axes.containers
    assert list(plain[0].get_xdata()) == pytest.approx([0.5, 1.0], rel=0.05)
    assert plain[0].get_ydata() == pytest.approx([55, 60])
    assert patches[0].get_ydata() == pytest.approx([70])
    assert patches[0].get_color() == PRIOR_STYLES["patches"][0]
    for words in ("plain 60.0", "untrained 20.0", "patches alone 30.0", "patches 70.0"):
        assert words in texts(axes)
    assert "plain* 60.0" not in texts(axes)  # plain's own label stands there


def test_error_bars_stand_beside_one_another(project: Path) -> None:
    (figure,) = draw(project, "budget")
    plain, patches = (container[0].get_xdata() for container in figure.axes[0].containers)
    assert plain[0] < 0.5 < patches[0] and patches[0] / plain[0] == pytest.approx(1.05, abs=0.01)


def test_what_is_far_away_is_an_arrow_and_does_not_squeeze(project: Path) -> None:
    (figure,) = draw(project, "budget")
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert 45 < low < 55 and 70 < high < 80
    assert {"↓ untrained 20.0", "↓ patches alone 30.0"} <= {text.get_text() for text in axes.texts}
    inside = boxes(figure, axes.texts)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in inside)


def starts_of_leads(figure: Any) -> list[tuple[float, float]]:
    """Where the thin lines to the labels begin, in data."""
    (axes,) = figure.axes
    found = [line for line in axes.lines if line.get_gid() == "lead"]
    pixels = [axes.transAxes.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in found]
    return sorted(tuple(axes.transData.inverted().transform(pixel)) for pixel in pixels)


def test_lines_to_labels_begin_at_what_they_name(project: Path) -> None:
    (cost,) = draw(project, "cost")
    assert starts_of_leads(cost) == [pytest.approx((111, 70)), pytest.approx((200, 60))]
    (variance,) = draw(project, "variance")
    assert starts_of_leads(variance) == [pytest.approx((2, 90))]


def test_points_of_the_frontier_are_ringed(project: Path) -> None:
    (figure,) = draw(project, "cost")
    (rings,) = (line for line in figure.axes[0].lines if line.get_gid() == "frontier")
    assert list(rings.get_xdata()) == [100, 111]


def test_cost_includes_the_prior(project: Path) -> None:
    (figure,) = draw(project, "cost")
    plain, patches = figure.axes[0].containers
    assert list(plain[0].get_xdata()) == [100, 200]
    assert list(patches[0].get_xdata()) == [111]


def test_budgets_that_cost_the_same_keep_their_names(make: Make, tmp_path: Path) -> None:
    """As when both round to the same number of steps."""
    for budget, top1 in ((0.5, 0.6), (0.53, 0.6), (0.8, 0.4), (1.0, 0.9)):
        for seed in (0, 1):
            make(top1, "none", budget, seed, flops={"train": 100.0 if budget < 1 else 200.0})
    (figure,) = draw(tmp_path / "outputs", "cost")
    (axes,) = figure.axes
    (plain,) = axes.containers
    assert list(plain[0].get_xdata()) == [100, 100, 100, 200]
    assert plain[0].get_ydata() == pytest.approx([60, 60, 40, 90])
    assert {"50", "53", "80", "100"} <= {text.get_text() for text in axes.texts}


def test_without_a_cost_there_is_no_cost_plot(project: Path) -> None:
    assert draw(project, "cost", axis="seconds") == []


def test_a_mixed_record_is_no_loss_of_either_phase(project: Path) -> None:
    """The switch fell at step 25, so the record of steps 21 to 30 averages two losses."""
    lines = [
        {"step": 20, "phase": 1, "loss": 0.5},
        {"step": 30, "phase": 2, "loss": 2.0},
        {"step": 40, "phase": 2, "loss": 5.0},
    ]
    assert training.picked(lines, 2, "loss", 1.0, 25) == [(40, 5.0)]
    assert training.picked(lines, 2, "loss", 1.0, 21) == [(30, 2.0), (40, 5.0)]  # at a border nothing is mixed
    assert training.picked(lines, 1, "loss", 1.0, 25) == [(20, 0.5)]
    assert training.picked(lines, None, "loss", 100.0, 25) == [(20, 50.0), (30, 200.0), (40, 500.0)]


def test_training_marks_the_switch(project: Path) -> None:
    figure = draw(project, "training")[0]
    for axes in figure.axes:
        assert [25, 25] in [list(line.get_xdata()) for line in axes.lines]


def test_the_matching_loss_comes_from_the_trace(project: Path) -> None:
    """metrics.jsonl has means over many steps, of a short run not one of phase 1; the trace has each step."""
    for path in project.glob("runs/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [line for line in lines if line["phase"] == 2])
    figure = draw(project, "training")[0]
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles[0].startswith("matching loss") and len(titles) == 4
    curve = next(line for line in figure.axes[0].lines if len(line.get_xdata()) > 2)
    assert list(curve.get_xdata()) == list(range(1, 30))
    assert curve.get_ydata()[:2] == pytest.approx([1, 0.5])


def test_a_trace_is_averaged_over_whole_steps() -> None:
    points = [(step, float(step)) for step in range(1, 6)]
    assert training.binned_means(points, 200) == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert training.binned_means(points, 60) == points


def test_panels_without_a_value_are_left_out_and_ticks_are_whole_steps(make: Make, tmp_path: Path) -> None:
    folder = make(0.5, "none", 0.5, steps=3)
    write_lines(folder / "metrics.jsonl", [{"step": s, "phase": 2, "loss": 5.0 - s} for s in (1, 2, 3)])
    (figure,) = draw(tmp_path / "outputs", "training")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "simclr loss"
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_wide_tick_labels_are_inside(make: Make, tmp_path: Path) -> None:
    folder = make(0.5, "none", 0.5, steps=40)
    lines = [{"step": s, "phase": 2, "loss": 1.01 + s / 1e6, "knn": 1234.5678 + s / 1e6} for s in range(10, 50, 10)]
    write_lines(folder / "metrics.jsonl", lines)
    (figure,) = draw(tmp_path / "outputs", "training")
    first, second = figure.axes
    outer, inner = (boxes(figure, [tick.label1 for tick in a.yaxis.get_major_ticks()]) for a in (first, second))
    assert min(tick.x0 for tick in outer) > 0
    assert min(tick.x0 for tick in inner) > boxes(figure, [first.patch])[0].x1


def boxes(figure: Any, artists: list[Any]) -> list[Any]:
    """Where they are on the canvas, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


@pytest.fixture
def crowd(make: Make, tmp_path: Path) -> Path:
    """Ten ways to a backbone, five of them of one prior, whose costs and scores are close together."""
    for seed in (0, 1):
        leave(make(0.5, "none", 0.5, seed, flops={"train": 100.0}))
        for number, prior in enumerate(["patches", *["embedded"] * 5, "random", "clip_rn50", "dinov2_vits14"]):
            flops = {"extract": 1.0, "train": 100.0 + number}
            changes = {"transport.max_dim": number} if prior == "embedded" else {}
            leave(make(0.5 + 0.001 * number, prior, 0.5, seed, changes, flops=flops, switch_step=20 + seed), 20 + seed)
    return tmp_path / "outputs"


def test_many_variants_have_room_and_means_alone(crowd: Path) -> None:
    (figure,) = draw(crowd, "training")
    assert "means over seeds" in "\n".join(text.get_text() for text in figure.texts)
    (legend,) = figure.legends
    key, panels = boxes(figure, [legend])[0], [axes for axes in figure.axes if axes.get_visible()]
    titles = boxes(figure, [axes.title for axes in panels] + [axes._left_title for axes in panels])
    assert key.y0 > max(title.y1 for title in titles) and key.x1 <= figure.bbox.x1
    assert min(box.height for box in boxes(figure, [axes.patch for axes in panels])) > 1.4 * figure.dpi
    curves = [line for line in panels[-1].lines if len(set(line.get_xdata())) > 1]
    assert len(curves) == 10 and {line.get_linewidth() for line in curves} == {1.8}
    drawn = {(line.get_color(), line.get_linestyle()) for line in curves}
    shown = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(drawn) == 10 and drawn == shown
    assert [20.5, 20.5] in [list(line.get_xdata()) for line in panels[0].lines]


def test_many_labels_make_the_figure_grow(crowd: Path) -> None:
    for kind in ("budget", "cost"):
        (figure,) = draw(crowd, kind)
        labels = [text for text in figure.axes[0].texts if text.get_text()[-2:-1] == "."]
        assert len(labels) == 10
        found = sorted(boxes(figure, labels), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(found))
        assert found[0].y0 > 0 and max(box.x1 for box in found) <= figure.bbox.x1


def test_budgets_of_points_side_by_side_are_said_once(crowd: Path) -> None:
    (figure,) = draw(crowd, "cost")
    assert [text.get_text() for text in figure.axes[0].texts].count("50") == 1


def test_numbers_do_not_lie_on_one_another() -> None:
    with matplotlib_settings():
        figure, (axes,) = new_figure()
        axes.set(xlim=(0, 100), ylim=(0, 100))
        first = [(50, 50, "20"), (51, 50, "50"), (52, 51, "100")]
        number_points(axes, [first, [(50, 51, "20"), (80, 80, "20")]])
        assert sorted(text.get_text() for text in axes.texts) == ["100", "20", "20", "50"]
        found = boxes(figure, axes.texts)
        assert not any(one.overlaps(other) for i, one in enumerate(found) for other in found[:i])


def test_points_in_a_chain_share_one_number() -> None:
    """Not two numbers side by side and a third point without."""
    with matplotlib_settings():
        _, (axes,) = new_figure()
        axes.set(xlim=(0, 100), ylim=(0, 100))
        number_points(axes, [[(50, 50, "50")], [(54, 50, "50")], [(58, 50, "50")], [(58, 52, "20")]])
        assert sorted(text.get_text() for text in axes.texts) == ["20", "50"]


def test_the_longest_curve_of_a_prior_has_the_strongest_line(make: Make, tmp_path: Path) -> None:
    """Many variants at one budget, as in an ablation, leave the line of those at many budgets in full colour."""
    for name in ("identity", "pca", "standardize", "whitening", "zca"):
        for budget in (0.1, 0.5, 1.0) if name == "zca" else (0.5,):
            make(0.5, "embedded", budget=budget, changes={"transport": name})
    (group,) = series.groups_of(results_of(collect([tmp_path / "outputs"])))
    drawn = series.trained_columns(group)
    assert [column.name.split("=")[-1] for column, *_ in drawn[1:]][-1] == "zca", "names keep their order"
    assert drawn[-1][1:] == (style_of("embedded"), series.DASHES[0])
    assert drawn[-2][1:] == (lighter(style_of("embedded"), 1), series.DASHES[0]), "the fifth"


def test_a_fifth_variant_of_a_prior_is_lighter() -> None:
    assert lighter(style_of("patches"), 0) == style_of("patches")
    assert lighter(style_of("plain")._replace(colour="#000000"), 1).colour == "#808080"


def test_variance_is_cumulative_and_marks_the_learners_width(project: Path) -> None:
    (figure,) = draw(project, "variance")
    curve, dot = figure.axes[0].lines[:2]
    assert list(curve.get_ydata()) == pytest.approx([60, 90, 100])
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (2, pytest.approx(90))


def test_no_cache_no_variance(project: Path) -> None:
    (project / "cache" / "targets" / "abc" / "manifest.json").unlink()
    assert draw(project, "variance") == []


def test_trace_has_all_three_and_the_switch(project: Path) -> None:
    (figure,) = draw(project, "trace")
    above, below = figure.axes
    loss, fast, slow, switch = above.lines
    assert (loss.get_ydata()[1], fast.get_ydata()[0]) == (0.5, 1 - 1 / 99)
    assert slow.get_ydata()[0] == 2 - 1 / 50
    assert list(switch.get_xdata()) == [25, 25]
    assert list(below.lines[0].get_ydata()) == [0.5] * 29  # 1 - rho
    assert "left at step 25" in texts(above)


def test_an_adaptive_run_of_one_step_is_not_called_fixed(make: Make, tmp_path: Path) -> None:
    line = {"step": 1, "loss": 0.98, "fast": 0.98, "slow": 0.98, "rho": 0.37}
    folder = make(0.5, "patches", 0.5, steps=1)
    write_lines(folder / "switch.jsonl", [line])
    (figure,) = draw(tmp_path / "outputs", "trace")
    assert "fixed beforehand" not in "\n".join(text.get_text() for text in figure.texts)
    assert len(figure.axes) == 2 and all(one.get_marker() == "o" for one in figure.axes[0].lines)
    write_lines(folder / "switch.jsonl", [line | {"fast": 1.0, "slow": 2.0, "rho": 0.0}])  # as they start
    (figure,) = draw(tmp_path / "outputs", "trace")
    assert "fixed beforehand" in "\n".join(text.get_text() for text in figure.texts)


def test_every_switch_of_a_trace_is_in_sight(make: Make, tmp_path: Path) -> None:
    """The panels share their steps; the last one is not the one that left last."""
    for prior, step in (("random", 30), ("patches", 20)):
        leave(make(0.5, prior, 0.5, switch_step=step, steps=STEPS), switch_step=step)
    (figure,) = draw(tmp_path / "outputs", "trace")
    assert all(axes.get_xlim()[1] > 30 for axes in figure.axes)


def test_a_half_written_last_line_is_left_out(project: Path) -> None:
    for path in project.glob("runs/*/switch.jsonl"):
        path.write_text(path.read_text() + '{"step": 30, "lo')
    assert len(draw(project, "trace")) == 1


def test_two_groups_get_two_files(project: Path, make: Make, tmp_path: Path) -> None:
    make(0.3, "none", 1.0, changes={"epochs": 60})
    plot.main([str(project), "--kind=budget", "--out", str(tmp_path / "plots")])
    names = sorted(path.stem for path in (tmp_path / "plots").glob("*.png"))
    assert names == [f"budget-lbfgs-digits-resnet18-simclr-epochs={n}" for n in (30, 60)]


def test_nothing_to_draw(make: Make, tmp_path: Path) -> None:
    make(0.5)
    with pytest.raises(RelaError, match="nothing to draw"):
        plot.main([str(tmp_path / "outputs"), "--kind=trace", "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="did you mean trace"):
        plot.main(["--kind=budget,trce"])


def test_every_prior_keeps_its_style() -> None:
    every = (*PRIOR_STYLES.values(), *SPARE_STYLES)
    assert len({colour for colour, _ in every}) == len(every)
    assert style_of("clip_rn50") == style_of("clip_vitb16") == PRIOR_STYLES["clip"]
    assert style_of("random_learner") != style_of("random")
    assert style_of("thumbnail") == style_of("thumbnail")


@pytest.mark.parametrize("places", [[0.1, 0.5, 0.9], [0.5, 0.5, 0.5], [0.0, 0.0, 0.01], [0.98, 0.99, 1.0]])
def test_labels_are_pushed_apart_and_stay_inside(places: list[float]) -> None:
    moved = push_apart(places, 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(moved))
    assert moved[0] >= 0 and moved[-1] <= 1 + 1e-9


def test_labels_that_have_room_stay() -> None:
    assert push_apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])


def test_as_a_command_without_torch(rela: Rela, project: Path) -> None:
    done = rela("plot", stub=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert (project / "plots" / "budget-lbfgs.svg").is_file()


def test_the_table_needs_no_matplotlib(rela: Rela, project: Path) -> None:
    stub = NO_TORCH.replace('"lightly"', '"lightly", "matplotlib", "numpy"')
    done = rela("table", stub=stub, kind="fresh")
    assert done.returncode == 0, done.stderr
    assert "70.0" in done.stdout


def test_names_say_what_is_unusual() -> None:
    """Of variants in which several keys vary, what most share is left out; with one key, or no majority, it is said."""
    usually = {"prior": "patches", "transport": "whitening", "switch": "adaptive", "switch.threshold": "0.9"}
    others = [{"transport": "pca"}, {"transport": "zca"}, {"switch": "never"}, {}, {}]
    variants = [tuple(sorted((usually | other).items())) for other in others]
    assert series.usual_settings(variants) == {"transport=whitening", "switch=adaptive"}
    assert series.usual_settings(variants[:2] + variants[3:4]) == set()
