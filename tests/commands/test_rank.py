"""`rela rank`: the order it gives, the scores behind it, and what it says no to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rela_cli.commands.rank import command
from rela_cli.commands.rank.command import Scores
from rela_cli.commands.rank.request import configs_for, read
from rela_cli.config.compose import compose
from rela_cli.config.parts import instantiate
from rela_cli.data.labels import CIFAR10, CIFAR100, label_set
from rela_cli.errors import ConfigError
from rela_cli.evaluation.measures import effective_rank, linear_cka, mutual_neighbours, nearest_others, rank_of
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.pipeline.pipeline import run
from rela_cli.pipeline.run import Run

FAKE = ("dataset=fake", "dataset.n=120", "dataset.n_test=60", "dataset.size=12", "learner.width=4", "runtime.threads=1")


def ranked(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> list[dict]:
    """The records of `rela rank`, from its JSON."""
    capsys.readouterr()
    assert command.main([*words, *FAKE, f"paths.outputs={tmp_path}", "format=json"]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


# --------------------------------------------------------------------------------------------------------------- maths


def test_cka_is_numpys() -> None:
    random = np.random.RandomState(0)
    x, y = random.randn(50, 7), random.randn(50, 4)
    x, y = x - x.mean(0), y - y.mean(0)
    # Kornblith et al. 2019, equation 3, by Gram matrices instead of covariances
    one, other = x @ x.T, y @ y.T
    expected = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    assert linear_cka(torch.tensor(x) + 3, torch.tensor(y)) == pytest.approx(expected, abs=1e-10)
    rotation = np.linalg.qr(random.randn(7, 7))[0]
    assert linear_cka(torch.tensor(x), torch.tensor(2 * x @ rotation)) == pytest.approx(1)


def test_mutual_neighbours_by_hand() -> None:
    random = np.random.RandomState(1)
    x, y = random.randn(1100, 5), random.randn(1100, 9)  # more than one block of queries
    y[:550, :5] = 9 * x[:550]

    def near(z: np.ndarray) -> list[set[int]]:
        z = z - z.mean(0)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        similarity = z @ z.T
        np.fill_diagonal(similarity, -2)
        return [set(row[:10]) for row in np.argsort(-similarity, axis=1)]

    expected = np.mean([len(a & b) / 10 for a, b in zip(near(x), near(y), strict=True)])
    assert mutual_neighbours(torch.tensor(x), torch.tensor(y), 10) == pytest.approx(expected, abs=2e-3)
    assert mutual_neighbours(torch.tensor(x), torch.tensor(x), 10) == 1


def test_the_nearest_others_are_as_many_as_asked_for_or_all() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    found = nearest_others(x, 4)
    assert found.shape == (30, 4) and nearest_others(x[:3], 4).shape == (3, 2)
    assert not (found == torch.arange(30)[:, None]).any(), "nobody is a neighbour of his own"


def test_the_rank_of_a_spectrum_is_that_of_its_features() -> None:
    x = torch.randn(200, 8) * torch.arange(1, 9)
    values = torch.linalg.eigvalsh(torch.cov(x.T.double())).sqrt()
    assert rank_of(values) == pytest.approx(effective_rank(x), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------- command


def test_scores_are_those_of_the_stages_themselves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("prior.patches=16", "prior.width=8")
    found = {row["prior"]: row for row in ranked(capsys, tmp_path, "priors=[patches,random]", "n=100", *words)}
    assert found.keys() == {"patches", "random"}
    sample = ["dataset.limit=100", "dataset.test_limit=100", "batch_size=2", f"paths.outputs={tmp_path}"]
    short = ["epochs=1", "probe.protocols=[lbfgs,knn]"]
    made = compose(["prior=patches", "prior.patches=16", *FAKE, *sample, *short])
    run(made)
    alone = (Run(made).result or {})["baselines"]["prior_alone"]
    assert found["patches"]["lbfgs"] == alone["lbfgs"]["top1"]
    assert found["patches"]["knn"] == alone["knn"]["top1"]
    entry = Run(made)
    assert entry.lengths.train_samples == 100
    features = load_file(entry.features.folder / "train.safetensors")["features"].float()
    assert found["patches"]["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-3)
    assert found["patches"]["features"] == features.shape[1] == 2 * 16 * 4
    assert found["patches"]["targets"] == 32, "as many as the learner has"
    variances = torch.linalg.eigvalsh(torch.cov(features.T.double())).flip(0)
    assert found["patches"]["explained"] == pytest.approx(float(variances[:32].sum() / variances.sum()), rel=1e-6)
    other = load_file(Run(compose(random_words(tmp_path))).features.folder / "train.safetensors")["features"].float()
    assert found["patches"]["cka:random"] == pytest.approx(linear_cka(features, other))
    assert found["random"]["neighbours:patches"] == pytest.approx(mutual_neighbours(features, other, 10))
    assert found["random"]["features"] == 64, "prior.width went to the prior that has it"


def test_two_files_of_one_kind_are_two_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each entry gets its own keys; both rows are those of the file alone."""
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(cifar_resnet(20, 4).state_dict(), tmp_path / f"{name}.pth")
    words = ("a.stem=cifar", f"a.weights={tmp_path}/a.pth", f"b.weights={tmp_path}/b.pth", "n=60")
    found = {row["prior"]: row for row in ranked(capsys, tmp_path, "priors=[a=checkpoint,b=checkpoint]", *words)}
    assert found["a"]["stability"] != found["b"]["stability"]
    for name in "ab":
        alone = (f"checkpoint.weights={tmp_path}/{name}.pth", "n=60")
        (row,) = ranked(capsys, tmp_path, "priors=[checkpoint]", *alone)
        assert row["stability"] == found[name]["stability"]
        assert row["lbfgs"] == found[name]["lbfgs"]
    assert found["a"]["neighbours:b"] < 1


def test_a_key_under_a_prior_s_name_goes_to_that_prior_alone() -> None:
    words = ["priors=[embedded,random,patches]", "random.seed=3", "random.width=8", "prior.pool=1", *FAKE]
    embedded, random, patches = configs_for(read(words))
    assert random.prior.options == {"width": 8, "seed": 3}
    assert (patches.prior.options["seed"], patches.prior.options["pool"]) == (0, 1)
    assert embedded.prior.options["run"] == "embedded"
    kept = configs_for(read(["priors=[checkpoint]", "checkpoint.weights=x", "checkpoint.card.labels_seen=[cifar10]"]))
    assert kept[0].prior.card.labels_seen == ("cifar10",)


def test_own_parts_are_found_wherever_a_config_is_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rela rank`, `plan`, `fetch`, `data check`: whatever composes can import what `allow` names."""
    (tmp_path / "ownpkg").mkdir()
    (tmp_path / "ownpkg" / "__init__.py").write_text("")
    (tmp_path / "ownpkg" / "parts.py").write_text("class Mine:\n    def __init__(self, knob): self.knob = knob\n")
    (tmp_path / "conf" / "prior").mkdir(parents=True)
    yaml = "name: mine\n_target_: ownpkg.parts.Mine\nknob: 1\n"
    (tmp_path / "conf" / "prior" / "mine.yaml").write_text(yaml)
    monkeypatch.setattr("sys.path", [*sys.path])
    words = ["priors=[mine]", "mine.knob=2", "--config-dir", str(tmp_path / "conf")]
    with pytest.raises(ConfigError, match=r"allow=\[ownpkg\]"):
        configs_for(read(words))
    (config,) = configs_for(read([*words, "allow=[ownpkg]"]))
    assert instantiate(config.prior).knob == 2


def random_words(tmp_path: Path) -> list[str]:
    words = ["prior=random", "prior.width=8", *FAKE, f"paths.outputs={tmp_path}", "dataset.limit=100"]
    return [*words, "dataset.test_limit=100", "batch_size=2"]


def test_stability_is_one_for_a_prior_that_views_do_not_move(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And below one for a prior that they do."""
    (moved,) = ranked(capsys, tmp_path, "priors=[patches]", "prior.patches=16")
    assert 0 < moved["stability"] < 0.9
    monkeypatch.setattr(
        "rela_cli.data.batches.views.Augment.__call__", lambda self, images, rows, epoch: images.float() / 255
    )
    (still,) = ranked(capsys, tmp_path, "priors=[patches]", "prior.patches=16")
    assert still["stability"] == pytest.approx(1, abs=1e-6)


def test_the_second_time_computes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("priors=[random]", "prior.width=4")
    first = ranked(capsys, tmp_path, *words)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert stamps
    assert ranked(capsys, tmp_path, *words) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == stamps


def test_views_and_maps_are_said_to_play_no_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("priors=[random]", "prior.width=4", *FAKE, f"paths.outputs={tmp_path}", "format=json")
    lines = []
    for more in ((), ("extract.views=2",)):
        assert command.main([*words, *more]) == 0
        lines.append("do not change the order" in capsys.readouterr().err)
    assert lines == [False, True]


def score(prior: str, lbfgs: float | None, stable: float, saw: bool = False) -> Scores:
    return Scores(prior, saw, False, 8, 8, 0.5, 1.0, stable, lbfgs, lbfgs, 1.0, 1.0)


def test_order() -> None:
    with_labels = [score("a", 0.5, 9), score("b", 0.7, 1), score("c", 0.99, 1, saw=True)]
    assert [s.prior for s in command.ordered(with_labels)] == ["b", "a", "c"], "who saw the labels stands last"
    without = [score("a", None, 1), score("b", None, 9)]
    assert [s.prior for s in command.ordered(without)] == ["b", "a"]


def test_a_table_that_can_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["priors=[random,patches]", "prior.width=4", "prior.patches=4", *FAKE, f"paths.outputs={tmp_path}"]
    assert command.main([*words, "format=md"]) == 0
    text = capsys.readouterr().out
    assert "fake, 120 train images · targets for resnet18 · ordered by lbfgs" in text
    assert "agreement between priors" in text


def test_the_screen_holds_one_table_a_verdict_and_the_next_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["priors=[patches]", "patches.patches=4", *FAKE, f"paths.outputs={tmp_path}"]
    assert command.main(words) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.partition("next")[0].partition("ahead")[0].splitlines())) <= 80
    assert "agreement between" not in text
    assert "patches is ahead by lbfgs: " in text
    assert f"next  rela train prior=patches prior.patches=4 {' '.join(FAKE)} paths.outputs={tmp_path}" in text


def test_verdicts() -> None:
    two = command.ordered([score("a", 0.5, 9), score("b", 0.7, 1)])
    assert command.ranking_sentence(two).startswith(
        "b is ahead by lbfgs: 70.0, before a with 50.0. The strongest prior does not"
    )
    unlabelled = command.ordered([score("a", None, 0.25), score("b", None, 0.5)])
    assert command.ranking_sentence(unlabelled).startswith("b is ahead by stability: 50.0, before a with 25.0")
    cheat = command.ordered([score("a", 0.5, 9), score("b", 0.9, 1, saw=True)])
    assert command.ranking_sentence(cheat).startswith("a is ahead by lbfgs: 50.0. The strongest")
    same = [score("b", None, 0.5), score("a", None, 0.5), score("c", None, 0.1), score("d", None, 0.5, saw=True)]
    said = command.ranking_sentence(command.ordered(same))
    assert said.startswith("b and a are level by stability: 50.0. The strongest")
    assert "none can be told" in command.ranking_sentence([score("b", 0.9, 1, saw=True)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which: rela rank --priors"),
        (["priors=[]"], "say which"),
        (["prior=random"], "say which"),
        (["priors=[random,pachtes]"], "did you mean patches"),
        (["priors=[random]", "prior.widht=3"], "none of these priors has prior.widht"),
        (["priors=[none]"], "prior=none has no targets"),
        (["priors=[random]", "n=3"], "--n=3 must be"),
        (["priors=[random]", "format=pdf"], "--format=pdf must be one of"),
        (["priors=[random]", "-m"], "leave -m out"),
        (["priors=[checkpoint]"], "needs prior.weights=PATH"),
        (["priors=[random]", "bugdet=1"], "did you mean budget"),
        (["priors=[rela_run,embedded]", "prior.run=X"], r"whose it is: rela_run.run=X or embedded.run=X"),
        (["priors=[random,patches]", "prior.seed=1"], r"random.seed=1 or patches.seed=1"),
        (
            ["priors=[random,patches]", "patches.widht=1"],
            r"patches has no widht.*allowed: card, patch_size, patches, pool",
        ),
        (["priors=[checkpoint,checkpoint]"], r"stands twice.*--priors a=checkpoint,b=checkpoint"),
        (["priors=[a=checkpoint,a=timm]"], "a stands twice"),
        (["priors=[dataset=checkpoint]"], "dataset cannot be a name; say one such as a=checkpoint"),
        (["priors=[a=chekpoint]"], "did you mean checkpoint"),
        (["priors=[a=checkpoint,b=timm]", "b.model=x"], "a: prior=checkpoint needs prior.weights=PATH"),
    ],
)
def test_what_cannot_be_meant(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main([*words, f"paths.outputs={tmp_path}"] if words else ["n=50"])


# ----------------------------------------------------------------------------------------------------------- label sets


def test_classes_give_a_dataset_away() -> None:
    cifar10 = CIFAR10.split()
    assert label_set(cifar10) == "cifar10"
    assert label_set(["plane", "car", *cifar10[2:]]) == "cifar10"
    assert label_set(cifar10[:9]) is None
    assert label_set(CIFAR100.split()) == "cifar100"
    assert len(set(CIFAR100.split())) == 100
    assert label_set(["n01440764", "n02102040"]) == "imagenet"
    assert label_set(["n01440764", "cats"]) is None
    assert label_set([]) is label_set(None) is None
