"""The page: one file with everything in it, from whatever is still there."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rela_cli.commands.report import command, neighbours
from rela_cli.errors import RelaError
from rela_cli.report.figures.ink import contrast, readable_ink
from rela_cli.report.figures.series import groups_of
from rela_cli.report.page import html, page
from rela_cli.report.page.page import Neighbourhood, Picture
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import Protocol, results_of
from tests.commands.test_plot import project
from tests.conftest import NO_TORCH, Rela
from tests.report.made_runs import Make, make
from tests.report.test_transfer import on

__all__ = ["make", "project"]  # fixtures

VOID = {"meta", "img", "br", "path", "use", "link"}
UNCLOSED = {"th", "dt", "dd", "p"}  # HTML lets their end tags out


class Page(HTMLParser):
    """Reads a page as a browser does and notes what a check wants to know."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                self.references.append(value or "")
        if tag not in VOID | UNCLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID | UNCLOSED:
            assert self.open.pop() == tag


def written(outputs: Path, *options: str) -> str:
    out = outputs.parent / "site" / "report.html"
    assert command.main([str(outputs), "--to", str(out), *options]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_is_whole_and_needs_nothing_else(project: Path) -> None:
    text = written(project)
    found = Page(text)
    assert found.open == []
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all(one.startswith(("data:image/png;base64,", "#")) for one in found.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert found.tags.count("svg") == 6


def test_numbers_on_other_data_have_a_part_of_their_own(make: Make, tmp_path: Path) -> None:
    folder = make(0.9, prior="patches", untrained=0.3)
    assert "On other data" not in written(tmp_path / "outputs", "--no-neighbours")
    on(folder, "stl10", 0.614, 0.402)
    text = written(tmp_path / "outputs", "--no-neighbours")
    assert "<h2>On other data</h2>" in text and Page(text).open == []
    part = text.partition("On other data")[2].partition("<section>")[0]
    assert all(word in part for word in ("stl10", "61.4", "40.2", "untrained"))


def test_ids_of_one_plot_are_not_those_of_another(project: Path) -> None:
    """An SVG refers to its own clip paths and markers by id; two alike would mix up plots."""
    plots = re.findall(r"<svg.*?</svg>", written(project), flags=re.DOTALL)
    used = [set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) for svg in plots]
    defined = [set(re.findall(r'id="([^"]+)"', svg)) for svg in plots]
    assert all(one <= ids for one, ids in zip(used, defined, strict=True))
    assert all(not used[i] & defined[j] for i in range(len(plots)) for j in range(i))


def test_plots_follow_light_and_dark(project: Path) -> None:
    text = written(project)
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink)" in svgs and "var(--paper)" in svgs
    assert "#1d2228" not in svgs
    assert "prefers-color-scheme: dark" in text


def test_it_says_what_came_out(project: Path) -> None:
    text = written(project)
    assert "<b>patches</b> at 50 % of the data an epoch: <b>70.0 %</b> (n = 2), +10.0 points" in text
    assert "for 56 % of its FLOPs" in text  # 111 of 200
    assert "lbfgs: linear, by L-BFGS on standardised features; online: the network that was trained" in text
    assert "6 runs: 6 finished, 0 not" in text
    assert "<pre>rela train</pre>" in text


@pytest.mark.parametrize(
    ("alone", "words"), [(0.3, "The prior alone is not better"), (0.9, "<b>The prior alone is better</b>")]
)
def test_it_says_whether_the_prior_alone_is_better(make: Make, tmp_path: Path, alone: float, words: str) -> None:
    make(0.7, "patches", prior_alone=alone)
    (group,) = groups_of(results_of(collect([tmp_path / "outputs"])))
    assert page.sentence(group, Protocol("lbfgs", "online"), "flops").endswith(f" {words}: {100 * alone:.1f} %.")


def test_the_headline_names_what_is_unusual_as_the_plots_do(make: Make, tmp_path: Path) -> None:
    for top1, changes in ((0.6, {}), (0.5, {"matching.transfer": "frozen"}), (0.7, {"transport": "pca"})):
        make(top1, "patches", changes=changes)
    assert "<b>patches transport=pca</b> at 50 % of the data" in written(tmp_path / "outputs")


def test_it_says_what_its_words_mean(project: Path) -> None:
    text = written(project)
    for words in ("the online network, the network that was trained", "Plain is the self-supervised method without",
                  "The prior alone is what the prior,"):  # fmt: skip
        assert words in text


def test_every_colour_can_be_read_on_both_grounds(project: Path, make: Make) -> None:
    for prior in ("random", "embedded", "clip_rn50", "dinov2_vits14", "thumbnail"):
        make(0.6, prior, 0.5, 0, prior_alone=0.65, flops={"train": 100.0})
    text = written(project)
    shades = dict(re.findall(r"--c([0-9a-f]{6}):(#[0-9a-f]{6})", text))
    assert len(shades) >= 6
    assert min(contrast(shade, html.DARK) for shade in shades.values()) >= 4.5
    assert set(re.findall(r"var\(--c([0-9a-f]{6}),", text)) == set(shades)
    words = re.findall(r"<text [^>]*?fill: var\(--c([0-9a-f]{6})", text)
    assert len(words) >= 6
    assert min(contrast(f"#{colour}", "#ffffff") for colour in words) >= 4.5
    assert html.DARK in page.CSS


def test_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the known border of grey
    assert contrast("#0072b2", "#15181c") == pytest.approx(3.4, abs=0.05)
    assert readable_ink("#000000", "#ffffff") == "#000000"


def test_titles_of_plots_are_text_of_the_page(project: Path) -> None:
    text = written(project)
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "Accuracy against budget" not in svgs and "mean and standard deviation" not in svgs
    assert "<figcaption><b>Accuracy against budget</b><span>digits · resnet18 · simclr</span>" in text


def test_a_table_a_data_set_and_one_heading_for_all(make: Make, tmp_path: Path) -> None:
    make(0.7, "patches", seconds={"train": 2.0})
    make(0.6, "random", changes={"dataset": "cifar10"}, seconds={"train": 2.0})
    text = written(tmp_path / "outputs")
    assert "<h1>cifar10, digits</h1>" in text
    for title in ("digits · resnet18 · simclr · top-1 % by lbfgs (online)", "cifar10 · resnet18 · simclr · cpu · cost"):
        assert text.count(f"<h3>{title}") == 1
    assert "no result: untrained, plain, patches prior alone, plain*" in text


def test_a_prior_that_has_seen_the_labels_is_marked_in_plots_too(project: Path, make: Make) -> None:
    make(0.9, "clip_rn50", 0.5, 0, prior_saw_labels=True, prior_alone=0.8, flops={"train": 100.0})
    text = written(project)
    assert "clip_rn50† 90.0" in text and "clip_rn50 alone† 80.0" in text
    assert "†: its prior has seen these labels" in text


def test_a_prior_that_has_seen_the_labels_is_not_the_headline(project: Path, make: Make) -> None:
    make(0.99, "clip_rn50", 0.5, 0, prior_saw_labels=True)
    assert "<b>patches</b> at 50 %" in written(project)


def test_without_plain_it_says_that_nothing_compares(make: Make, tmp_path: Path) -> None:
    make(0.7, "patches")
    text = written(tmp_path / "outputs")
    assert "no plain run on everything" in text
    assert "minus plain" not in text


def test_unfinished_runs_are_named_with_their_reason(project: Path) -> None:
    folder = project / "runs" / "stopped-run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"status": "failed", "reason": "disk <full>\nmore"}))
    text = written(project)
    assert "7 runs: 6 finished, 1 not" in text
    assert "stopped-run" in text and "failed: disk &lt;full&gt;" in text


def test_gone_images_are_said(project: Path) -> None:
    text = written(project)
    assert "none: " in text and "<img" not in text
    assert "Nearest neighbours" not in written(project, "--no-neighbours")


def test_nothing_from_a_run_gets_into_the_page_as_markup(make: Make, tmp_path: Path) -> None:
    make(0.5, changes={"dataset": "<script>alert(1)</script>"})
    assert "<script" not in written(tmp_path / "outputs")


def test_frames_count_the_same_class() -> None:
    one = Neighbourhood(Picture(b"q", "cat"), (Picture(b"a", "dog"),), (Picture(b"b", "cat"),))
    text = page.grid_of([one])
    assert text.count("class=same") == 1
    assert re.findall('data-head="([^"]+)"', text) == ["test image", "untrained learner", "trained backbone"]
    assert "0 of 1 before and 1 of 1 after" in text
    assert "framed" not in page.grid_of([Neighbourhood(Picture(b"q", None), (), (Picture(b"b", None),))])


def test_no_result_no_page(tmp_path: Path) -> None:
    with pytest.raises(RelaError, match="no result"):
        command.main([str(tmp_path)])


def test_without_neighbours_torch_is_not_needed(rela: Rela, project: Path) -> None:
    done = rela("report", "--no-neighbours", stub=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert (project / "report.html").is_file()


# ----------------------------------------------------------------------------------------------- a real run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a ReLA run on tinted noise."""
    from rela_cli.config.compose import compose
    from rela_cli.pipeline.pipeline import run

    outputs = tmp_path_factory.mktemp("report") / "outputs"
    small = ("dataset=fake", "dataset.size=8", "learner.width=4", "epochs=2", "budget=0.5", "runtime.threads=1")
    run(compose([*small, "probe.protocols=[knn]", f"paths.outputs={outputs}"]))
    return outputs


def test_neighbours_are_the_nearest_of_train(trained: Path) -> None:
    """Against the backbone's own features, looked up by hand."""
    from rela_cli.data.batches.cache import read_split, read_stats
    from rela_cli.evaluation.representation import representations
    from rela_cli.learners.build import load_backbone

    (folder,) = (path.parent for path in trained.glob("runs/fake*/result.json"))
    found = neighbours.neighbours_of_run(folder)
    assert [len(one.after) for one in found] == [neighbours.NEAREST] * 4  # one query a class
    assert len({one.query.label for one in found}) == 4
    entry = neighbours.images_of(folder)
    train, test, data = read_split(entry, "train"), read_split(entry, "test"), read_stats(entry)
    assert train and test and test.labels is not None
    backbone = load_backbone(folder)
    bank, one = (representations(backbone, images, data, 64) for images in (train.images, test.images))
    query = int((test.labels == 0).nonzero()[0, 0])
    closest = int(torch.cosine_similarity(one[query : query + 1], bank).argmax())
    shown = torch.from_numpy(np.array(Image.open(io.BytesIO(found[0].after[0].png)))).permute(2, 0, 1)
    assert torch.equal(shown, train.images[closest : closest + 1][0])


def test_before_and_after_differ_and_are_shown(trained: Path) -> None:
    text = written(trained)
    found = Page(text)
    assert found.tags.count("img") == 4 * (1 + 2 * neighbours.NEAREST)
    (folder,) = (path.parent for path in trained.glob("runs/fake*/result.json"))
    pictures = neighbours.neighbours_of_run(folder)
    assert [one.before for one in pictures] != [one.after for one in pictures]


def test_when_the_cache_is_gone_it_says_so(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "outputs" / "runs")
    for path in tmp_path.glob("outputs/runs/fake*/config.yaml"):
        path.write_text(re.sub(r"outputs: .*", "outputs: nowhere", path.read_text()))
    text = written(tmp_path / "outputs")
    assert "its images are no longer in the cache" in text
    assert "<img" not in text and "<svg" in text


def test_a_foreign_class_is_not_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs", symlinks=True)
    for path in tmp_path.glob("outputs/runs/fake*/config.yaml"):
        path.write_text(path.read_text().replace("rela_cli.learners", "os.learners"))
    assert "os.learners" in written(tmp_path / "outputs")  # named, in the place of the images


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (500, "dark")])
def test_in_a_browser(project: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """It is painted, on the ground of the scheme that the reader has chosen."""
    written(project)
    shot = tmp_path / "shot.png"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},1500"]
    flags += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    assert BROWSER
    subprocess.run([BROWSER, *flags, f"file://{tmp_path / 'site' / 'report.html'}"], check=True, capture_output=True)
    image = Image.open(shot).convert("RGB")
    assert image.getpixel((2, 2)) == ((255, 255, 255) if scheme == "light" else (21, 24, 28))
    assert len(image.getcolors(1 << 22) or []) > 50


def test_runs_without_any_number(make: Make, tmp_path: Path) -> None:
    make({}, "patches")
    runs = results_of(collect([tmp_path / "outputs"]))
    assert len(runs) == 1
    assert "no number yet" in written(tmp_path / "outputs")


def test_a_table_stands_the_other_way_on_a_narrow_screen_and_says_its_marks_once(make: Make, tmp_path: Path) -> None:
    for dataset in ("digits", "cifar10"):
        for prior in ("patches", "random", "embedded"):
            make(0.7, prior, changes={"dataset": dataset})
    text = written(tmp_path / "outputs")
    first = text[text.index("<h2>Accuracy") :].partition("</section>")[0]
    assert first.count('class="scroll broad"') == first.count('class="scroll tall"') == 2
    assert first.count("linear, by L-BFGS") == 1
