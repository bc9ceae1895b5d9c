"""The door: what Hydra composes, what from_tree makes of it, and that every yaml in conf/ holds."""

from __future__ import annotations

import copy
import importlib
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml

from rela_cli.config.compose import Composer, compose
from rela_cli.config.lengths import lengths
from rela_cli.config.overrides import CommandLine, parse
from rela_cli.config.reading import from_tree, to_tree
from rela_cli.config.schema import CONF_DIR, GROUPS, PART_GROUPS, Config
from rela_cli.errors import ConfigError
from tests.factories import NEEDS

YAMLS = sorted(path for path in CONF_DIR.glob("*/*.yaml"))
CHOICES = [path for path in YAMLS if path.parent.name not in ("experiment", "sweep")]


def name_of(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    """A --config-dir with an experiment that sets a budget and a prior, and a method of the user's own."""
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "halved.yaml").write_text(
        "# @package _global_\n# Half of it.\ndefaults:\n  - override /prior: none\nbudget: 0.3\nepochs: 7\n"
    )
    (folder / "method").mkdir()
    simclr = (CONF_DIR / "method" / "simclr.yaml").read_text()
    (folder / "method" / "mine.yaml").write_text(simclr.replace("name: simclr", "name: mine"))
    return folder


# ------------------------------------------------------------------------------------------- override spellings


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("preset", [False, True])
def test_every_spelling_of_an_override(plus: str, preset: bool, presets: Path) -> None:
    words = [f"{plus}budget=0.5", f"{plus}prior=random", f"{plus}prior.width=8", f"{plus}method.temperature=0.1"]
    words += [f"{plus}experiment=halved"] if preset else []
    config = compose(words, str(presets))
    assert (config.budget, config.prior.name) == (0.5, "random")
    assert (config.prior.options["width"], config.method.options["temperature"]) == (8, 0.1)
    assert config.epochs == (7 if preset else compose().epochs)


def test_preset_alone_and_own_part(presets: Path) -> None:
    config = compose(["experiment=halved", "method=mine"], str(presets))
    assert (config.budget, config.prior.name, config.method.name) == (0.3, "none", "mine")
    assert config.is_plain


def test_budget_defaults_to_everything() -> None:
    assert compose().budget == 1.0
    assert compose(["budget=null"]).budget == 1.0


@pytest.mark.parametrize("budget", ["budget=0.1,0.2,0.5", "+budget=0.1,0.2,0.5", "++budget=0.1,0.2,0.5"])
def test_sweeps_become_cells(budget: str, presets: Path) -> None:
    words = [budget, "prior=none,random", "-m", "--config-dir", str(presets), "+experiment=halved", "seed=0,1,2"]
    cells, first = Composer(parse(words)).cells()
    assert len(cells) == len(set(cells)) == 18
    assert all("experiment=halved" in cell for cell in cells)
    assert (first.budget, first.prior.name, first.seed, first.epochs) == (0.1, "none", 0, 7)


def test_hydra_keeps_its_own_plus() -> None:
    assert parse(["+hydra.job.env_set.A=1", "++hydra/launcher=basic", "+hydrant=1"]).overrides == (
        "+hydra.job.env_set.A=1",
        "++hydra/launcher=basic",
        "hydrant=1",
    )


def test_flags_and_overrides_in_any_order() -> None:
    line = parse(["a=1", "-m", "b=2", "--cfg=job", "c=3", "-cn", "other", "--info", "d=4"])
    assert line.overrides == ("a=1", "b=2", "c=3", "d=4")
    assert line.flags == {"--multirun": None, "--cfg": "job", "--config-name": "other", "--info": "all"}


# ------------------------------------------------------------------------------------------------- every yaml


@cache
def rows_of_choices() -> list[list[str]]:
    """Every choice that needs no other one, in as few command lines as there are choices in the largest group."""
    groups = {path.parent.name: list[str]() for path in CHOICES}
    for path in CHOICES:
        if name_of(path) not in (*NEEDS, "dataset=efficient"):  # which brings a prior and a transport
            groups[path.parent.name].append(name_of(path))
    return [[choice for choice in row if choice] for row in zip_longest(*groups.values())]


@cache
def composed_row(words: tuple[str, ...]) -> Config | None:
    try:
        return compose(words)
    except ConfigError:
        return None  # each of them is composed alone, so that the one at fault is named


def composed_with_others(choice: str) -> Config:
    row = next((tuple(row) for row in rows_of_choices() if choice in row), ())
    return (row and composed_row(row)) or compose([choice, *NEEDS.get(choice, [])])


@pytest.mark.parametrize("path", CHOICES, ids=name_of)
def test_every_choice_composes_and_bears_its_files_name(path: Path) -> None:
    config = composed_with_others(name_of(path))
    chosen = getattr(config, path.parent.name)
    assert getattr(chosen, "name", path.stem) == path.stem
    assert from_tree(to_tree(config)) == config


@pytest.mark.parametrize("path", [p for p in CHOICES if p.parent.name in PART_GROUPS], ids=name_of)
def test_every_target_is_there(path: Path) -> None:
    module, _, name = str(yaml.safe_load(path.read_text())["_target_"]).rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("path", sorted((CONF_DIR / "experiment").glob("*.yaml")), ids=name_of)
def test_every_experiment_composes(path: Path) -> None:
    assert isinstance(compose([name_of(path)]), Config)


@pytest.mark.parametrize("path", sorted((CONF_DIR / "sweep").glob("*.yaml")), ids=name_of)
def test_every_sweep_has_cells(path: Path) -> None:
    cells, _ = Composer(parse(["-m", name_of(path)])).cells()
    assert len(cells) > 1


def test_budgets_by_priors_are_all_pairs() -> None:
    cells, first = Composer(parse(["-m", "sweep=budgets_priors", "seed=3"])).cells()
    assert (first.budget, first.prior.name, first.seed) == (0.1, "none", 3)
    pairs = {tuple(word for word in cell if word.startswith(("budget=", "prior="))) for cell in cells}
    priors = ("none", "random_learner", "random", "patches", "embedded")
    assert pairs == {(f"budget={budget}", f"prior={prior}") for budget in (0.1, 0.2, 0.5, 1.0) for prior in priors}
    assert len(cells) == 20
    assert all("seed=3" in cell for cell in cells)


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_every_yaml_says_what_it_is(path: Path) -> None:
    from rela_cli.commands.list import first_sentence

    assert path.parent.name in GROUPS
    assert 10 < len(first_sentence(path.read_text())) < 200


# ------------------------------------------------------------------------------------------------------ rules

RANGES = [
    ("budget", 0.0, "above 0 and at most 1"),
    ("budget", 1.5, "above 0 and at most 1"),
    ("budget", float("nan"), "above 0"),
    ("epochs", 0, "at least 1"),
    ("epochs", True, "a whole number"),
    ("epochs", 2.5, "a whole number"),
    ("batch_size", 1, "at least 2"),
    ("seed", -1, "at least 0 and at most 2147483647"),
    ("prior.width", 0, "at least 1"),
    ("optimizer.lr", "fast", "a number"),
    ("switch.constants", "shares", "did you mean share?"),
    ("probe.protocols", ["rela", "knnn"], "did you mean knn?"),
    ("probe.protocols", [], "probe.protocols is empty"),
    ("matching.view.jitter", [0.1, 0.1], "must be a list of 4"),
    ("transport.dims", "most", "must be a whole number, or learner or twice or all"),
    ("transport.dims", 0, "must be a whole number, or learner or twice or all"),
    ("transport.power", 1.5, "at least 0 and at most 1"),
    ("matching.transfer", "learned", "must be one of trained, frozen"),
    ("runtime", "cpu", "must be a group of keys"),
]


def with_value(key: str, value: object) -> dict:
    tree = copy.deepcopy(to_tree(composed_row(("prior=random",))))
    node = tree
    *path, last = key.split(".")
    for step in path:
        node = node[step]
    node[last] = value
    return tree


@pytest.mark.parametrize(("key", "value", "message"), RANGES)
def test_ranges(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_tree(with_value(key, value))
    assert message in str(caught.value)
    assert key.split(".")[0] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_problem_at_once() -> None:
    tree = with_value("budget", 2)
    tree["bugdet"] = tree["seed"] = tree["matching"]["veiw"] = -1
    with pytest.raises(ConfigError) as caught:
        from_tree(tree)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "unknown key bugdet, did you mean budget?" in lines
    assert "unknown key matching.veiw, did you mean matching.view?" in lines or (
        "unknown key matching.veiw, did you mean view?" in lines
    )


def test_foreign_classes_inside_a_part_need_leave_too() -> None:
    tree = to_tree(compose(["prior=random_learner"]))
    tree["prior"]["learner"] = {"name": "x", "_target_": "os.system", "command": "true"}
    with pytest.raises(ConfigError, match=r"prior=random_learner wants to run os\.system.*allow=\[os\]"):
        from_tree(tree)
    assert from_tree({**tree, "allow": ["os"]}).allow == ("os",)


def test_foreign_classes_need_leave_on_the_command_line(tmp_path: Path) -> None:
    mine = tmp_path / "conf" / "prior"
    mine.mkdir(parents=True)
    (mine / "evil.yaml").write_text("# Bad.\nname: evil\n_target_: os.system\ncommand: 'true'\n")
    (tmp_path / "conf" / "experiment").mkdir()
    (tmp_path / "conf" / "experiment" / "sly.yaml").write_text("# @package _global_\nallow: [os]\n")
    folder = str(tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"os\.system, which is not part of rela.*allow=\[os\]"):
        compose(["prior=evil"], folder)
    with pytest.raises(ConfigError, match="only the command line"):
        compose(["prior=evil", "experiment=sly"], folder)
    assert compose(["prior=evil", "allow=[os]"], folder).prior.target == "os.system"


def test_hydra_runs_no_class_of_a_yaml_either(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "sly.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    mine:\n      _target_: subprocess.Popen\n      args: ['true']\n"
    )
    with pytest.raises(ConfigError, match=r"subprocess\.Popen; if you trust it"):
        compose(["experiment=sly"], str(tmp_path))


def test_import_root_only_with_leave(tmp_path: Path) -> None:
    flags: dict[str, str | None] = {"--config-dir": str(tmp_path / "conf")}
    assert CommandLine(flags, ("prior=mine",)).import_root is None
    assert CommandLine(flags, ("prior=mine", "allow=[mine]")).import_root == str(tmp_path)


def test_lengths() -> None:
    config = compose(["budget=0.3", "epochs=4", "batch_size=64"])
    n = lengths(config, 1437)
    assert (n.subset_size, n.steps_per_epoch, n.total_steps, n.samples_seen) == (431, 6, 24, 24 * 64)
    with pytest.raises(ConfigError, match="batch_size=64 is larger than the subset"):
        lengths(config, 100)
    with pytest.raises(ConfigError, match=r"of 3 samples is 0. A batch takes 2 at the least: say a larger budget"):
        lengths(config, 3)
    assert lengths(compose(["budget=0.29", "batch_size=29"]), 100).subset_size == 29  # 28.999999999999996 in floats
