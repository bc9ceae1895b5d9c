"""Keys that hold text: what is typed is what the run gets, one value or a sweep, from the command line or a yaml."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from rela_cli.config.compose import Composer, compose
from rela_cli.config.overrides import parse
from rela_cli.config.text import holds_text, quoted_if_needed, quoted_values, split_words
from rela_cli.errors import ConfigError
from tests.conftest import NO_TORCH, Rela

TYPED = [
    *("2024_11_28", "20241128", "2024-11-28", "1.10", "1e3", "1_0", "007", "0x10", "1:30", "-5", "+5", ".5", "5."),
    *("true", "False", "nan", "inf", "yes", "off", "1e3.ckpt", "epoch=3-step=10.ckpt", "~/photos", "my photos", "a(1)"),
    *("фото", "日本の写真", "größe", "it's", 'a "b"', "a[1]", "a{b}", "x;y#z&w!", "s3://bucket/pack", "$HOME", "a'b\\"),
    *(" a", "50%", "a\tb"),
]


@pytest.mark.parametrize("text", TYPED)
def test_text_is_as_it_was_typed(text: str) -> None:
    config = compose(
        ["dataset=image_folder", f"dataset.root={text}", f"paths.run={text}", "prior=timm", f"prior.model={text}"]
    )
    assert (config.dataset.options["root"], config.paths.run, config.prior.options["model"]) == (text,) * 3


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("'1.10'", "1.10"),
        ('"a, b"', "a, b"),
        (r"a\,b", "a,b"),
        (r"it\=s", "it=s"),
        ("null", None),
        ("${dataset.name}/x", "image_folder/x"),
        ("str(1.5)", "1.5"),
    ],
)
def test_what_the_grammar_says_on_purpose_stays(typed: str, meant: str | None) -> None:
    assert compose(["dataset=image_folder", f"dataset.root={typed}"]).dataset.options["root"] == meant


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("/data/cifar", "/data/cifar"),
        ("out puts", "out puts"),
        ("2024", "'2024'"),
        ("a,b", "'a,b'"),
        ("it's", "'it\\'s'"),
        ("null", "'null'"),
    ],
)
def test_text_is_quoted_where_hydra_would_read_something_else(text: str, word: str) -> None:
    assert quoted_if_needed(text) == word
    assert OverridesParser.create().parse_override(f"paths.outputs={word}").value() == text


@pytest.mark.parametrize("text", TYPED)
def test_hydra_reads_the_very_text_of_what_is_quoted_if_needed(text: str) -> None:
    word = f"paths.outputs={quoted_if_needed(text)}"
    assert OverridesParser.create().parse_override(word).value() == text


def test_lists_of_text() -> None:
    config = compose(["prior=timm", "prior.model=x", "prior.ignore=[1.10, 1_0,a b,'2']", "allow=[1e3]"])
    assert (config.prior.options["ignore"], config.allow) == (("1.10", "1_0", "a b", "2"), ("1e3",))


@pytest.mark.parametrize("values", ["1.10,2024_11_28,фото", "choice(1.10,2024_11_28,фото)", "'1.10', 2024_11_28 ,фото"])
def test_text_in_a_sweep(values: str) -> None:
    cells, first = Composer(parse(["-m", f"paths.run={values}", "budget=1e-1,0.5"])).cells()
    assert (first.paths.run, first.budget, len(cells)) == ("1.10", 0.1, 6)
    assert {compose(cell).paths.run for cell in cells} == {"1.10", "2024_11_28", "фото"}


def test_a_sweep_in_a_yaml(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\n# Days.\nhydra:\n  sweeper:\n    params:\n      paths.run: {}\n"
    (tmp_path / "sweep" / "days.yaml").write_text(text.format("1.10,2024_11_28"))
    (tmp_path / "sweep" / "day.yaml").write_text(text.format("2024_11_28"))
    cells, _ = Composer(parse(["-m", "sweep=days", "--config-dir", str(tmp_path)])).cells()
    assert [compose([w for w in cell if w.startswith("paths")]).paths.run for cell in cells] == ["1.10", "2024_11_28"]
    with pytest.raises(ConfigError, match="put it in quotes"):
        Composer(parse(["-m", "sweep=day", "--config-dir", str(tmp_path)])).cells()


def test_numbers_in_a_yaml_are_refused_where_text_is_meant(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name, root in {"bare": "2024_11_28", "float": "1.10", "quoted": "'2024_11_28'"}.items():
        yaml_text = f"# @package _global_\ndefaults:\n  - override /dataset: image_folder\ndataset:\n  root: {root}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(yaml_text)
    for name in ("bare", "float"):
        with pytest.raises(ConfigError, match=r"dataset\.root=.* must be a word; .* in quotes in the yaml"):
            compose([f"experiment={name}"], str(tmp_path))
    assert compose(["experiment=quoted"], str(tmp_path)).dataset.options["root"] == "2024_11_28"


def test_keys_of_own_parts_hold_text_where_their_yaml_does(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_text(
        "name: own\n_target_: my.Own\nday: monday\nmode: auto\nsize: 3\nday2: null\n"
    )
    words = ["method=own", "method.day=2024_11_28", "method.mode=8", "method.size=1_0", "allow=[my]"]
    assert compose(words, str(tmp_path)).method.options == {"day": "2024_11_28", "mode": 8, "size": 10, "day2": None}


def test_names_of_yamls_are_text_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "2024_11_28.yaml").write_text("# @package _global_\nepochs: 7\n")
    assert compose(["experiment=2024_11_28"], str(tmp_path)).epochs == 7


def test_hydra_has_text_too(rela: Rela) -> None:
    done = rela("train", "--cfg", "hydra", "hydra.sweep.dir=2024_11", stub=NO_TORCH)
    assert yaml.safe_load(done.stdout)["hydra"]["sweep"]["dir"] == "2024_11"


def test_hydra_itself_gets_the_same_text(rela: Rela) -> None:
    done = rela("train", "--cfg", "job", "dataset=image_folder", "dataset.root=1_0", "prior=timm", "prior.model=фото=1")
    tree = yaml.safe_load(done.stdout)
    assert (tree["dataset"]["root"], tree["prior"]["model"]) == ("1_0", "фото=1")


def test_several_values_without_m_say_how_to_quote(rela: Rela) -> None:
    done = rela("train", "dataset.root=a,b", stub=NO_TORCH)
    assert (done.returncode, "say -m" in done.stderr, "'dataset.root=\"a,b\"'" in done.stderr) == (2, True, True)


def test_any_text_comes_through() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("ab1_.e'\"[]{}()=:;#~ é日-+/") for _ in range(draw.randrange(1, 9)))
        if text.strip()[:1] in "'\"{[" or "(" in text:
            continue  # read by Hydra's own grammar
        quoted = quoted_values(text)
        assert quoted_values(quoted) == quoted, "quoting twice changes nothing"
        assert split_words(quoted) == [quoted]


def test_which_keys_hold_text() -> None:
    text = (
        "dataset.root",
        "paths.run",
        "prior.ignore",
        "logger.project",
        "prior.card.sha256",
        "resume",
        "prior",
        "allow",
    )
    assert [key for key in text if not holds_text(key)] == []
    assert [key for key in ("budget", "prior.width", "matching.view.flip_p", "prior.mean") if holds_text(key)] == []
    assert holds_text("method.somebodys") is None
