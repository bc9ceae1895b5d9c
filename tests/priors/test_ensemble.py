"""prior=ensemble: the targets of several priors side by side, and cache entries shared with these priors alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import rela_cli as api
from rela_cli import cli
from rela_cli.commands.convert import writer
from rela_cli.commands.convert.card import card_text
from rela_cli.commands.plan import sizes
from rela_cli.commands.rank import command as rank
from rela_cli.commands.rank.request import command, read
from rela_cli.config.compose import Composer, compose
from rela_cli.config.overrides import parse
from rela_cli.config.reading import from_tree, to_tree
from rela_cli.config.schema import Config, Part
from rela_cli.data.batches.cache import read_split, read_stats
from rela_cli.data.efficient.folder import EfficientFolder
from rela_cli.errors import ConfigError
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.brought import Brought
from rela_cli.pipeline.footprint import of_run
from rela_cli.pipeline.run import Run
from rela_cli.priors.fitting import fitted_prior
from rela_cli.report.results.settings import differing, flatten, settings_text
from rela_cli.stages import extract
from rela_cli.stages.ensemble import read_features
from rela_cli.store.files import size_of
from rela_cli.store.outputs import take_inventory
from rela_cli.transports.base import column_order, taken_up
from rela_cli.weights import seen
from tests.factories import config

FAKE = ("dataset=fake", "dataset.n=48", "dataset.n_test=20", "dataset.size=16", "batch_size=16", "epochs=2",
        "budget=0.5", "switch=fixed", "probe.protocols=[knn]", "probe.knn_k=5",
        "runtime.eval_every_epochs=0")  # fmt: skip
NARROW, WIDE = "{name: patches, patches: 4}", "{name: random, width: 5}"  # 32 and 40 features
BOTH = ("prior=ensemble", f"prior.members=[{NARROW},{WIDE}]")
ALONE = (("prior=patches", "prior.patches=4"), ("prior=random", "prior.width=5"))


def asked(folder: Path, *words: str) -> Config:
    return config(*FAKE, *words, f"paths.outputs={folder}")


def targets(run: Run, split: str = "train") -> Tensor:
    return load_file(run.targets.folder / f"{split}.safetensors")["targets"].float()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the ensemble was made, and nothing else was asked for."""
    folder = tmp_path_factory.mktemp("ensemble")
    pipeline.run(asked(folder, *BOTH))
    return folder


# ---------------------------------------------------------------------------------------------------------- the targets


def test_targets_alternate_between_the_members(place: Path) -> None:
    for split in ("train", "test"):
        one, other = (targets(Run(asked(place, *words)), split).numpy() for words in ALONE)
        expected = np.empty((len(one), 72), dtype=np.float32)
        expected[:, 0:64:2], expected[:, 1:64:2], expected[:, 64:] = one, other[:, :32], other[:, 32:]
        assert np.array_equal(targets(Run(asked(place, *BOTH)), split).numpy(), expected)
    assert column_order([2, 3], ordered=False).tolist() == [0, 1, 2, 3, 4]


def test_the_joint_map_makes_them_of_the_joint_features(place: Path) -> None:
    """The prior as a module, through the map that the folder holds: what is live is what is cached."""
    run = Run(asked(place, *BOTH))
    split, data = read_split(run.images, "train", run.dataset), read_stats(run.images)
    assert split is not None and isinstance(split.images, Tensor)
    prior, _ = fitted_prior(run.config, split, data)
    mapping = taken_up(run.config.transport, run.targets.folder / "map.safetensors", "", "")
    with torch.no_grad():
        made = mapping(prior(split.images)).float()
    assert prior.feature_dim == 72 and made.shape == (48, 72)
    assert F.cosine_similarity(made[:, :32], targets(run)[:, :32], dim=1).min() > 0.999


@pytest.mark.parametrize("transport", ["pca", "zca", "identity"])
def test_members_weigh_the_same(transport: str, place: Path) -> None:
    """By their mean square: of ordered components the first ones that both have, of others all."""
    run = Run(asked(place, *BOTH, f"transport={transport}"))
    pipeline.run(run.given, until="transport")
    found, ordered = targets(run).double(), transport == "pca"
    one, other = (found[:, 0:64:2], found[:, 1:64:2]) if ordered else (found[:, :32], found[:, 32:])
    assert float(one.square().sum() / other.square().sum()) == pytest.approx(1, abs=5e-3)


def test_features_side_by_side_have_the_same_norm(place: Path) -> None:
    run = Run(asked(place, *BOTH))
    found = read_features(run.features, "train")
    one, other = found[:, :32].square().sum(), found[:, 32:].square().sum()
    assert float(one) == pytest.approx(48, rel=1e-4) and float(other) == pytest.approx(48, rel=1e-4)
    raw = load_file(Run(asked(place, *ALONE[1])).features.folder / "test.safetensors")["features"].float()
    seen_in_test = read_features(run.features, "test")[:, 32:]
    assert torch.allclose(seen_in_test / seen_in_test.norm(), raw / raw.norm(), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ the cache


def test_nothing_is_extracted_twice(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a member after the ensemble, nor by the ensemble after its members, views and all."""
    for words in ALONE:
        run = Run(asked(place, *words))
        assert run.features.manifest and run.targets.manifest
    for words in ALONE:
        pipeline.run(asked(tmp_path, *words, "extract.views=2"), until="transport")

    def never(*_: object) -> None:
        raise AssertionError("the prior looks at images again")

    monkeypatch.setattr(extract, "run_prior", never)
    monkeypatch.setattr(extract, "look_at_views", never)
    pipeline.run(asked(tmp_path, *BOTH, "extract.views=2"), until="transport")
    run = Run(asked(tmp_path, *BOTH, "extract.views=2"))
    first, second = (Run(asked(tmp_path, *words, "extract.views=2")) for words in ALONE)
    of_views = [
        load_file(r.view_targets.folder / "train.safetensors")["targets"].unflatten(1, (2, -1))
        for r in (run, first, second)
    ]
    assert torch.equal(of_views[0][..., 0:64:2], of_views[1]) and torch.equal(
        of_views[0][..., 1:64:2], of_views[2][..., :32]
    )
    boxes = [load_file(r.view_targets.folder / "boxes.safetensors")["boxes"] for r in (run, first)]
    assert torch.equal(*boxes)


def test_what_it_cost_is_what_its_members_cost(place: Path) -> None:
    run, alone = Run(asked(place, *BOTH)), [Run(asked(place, *words)) for words in ALONE]
    made = [one.features.manifest or {} for one in alone]
    result = run.result or {}
    assert result["seconds"]["extract"] == pytest.approx(sum(one["seconds"] for one in made))
    assert result["flops"]["extract"] == sum(one["flops"] for one in made)
    assert result["flops"]["transport"] == sum((one.targets.manifest or {})["flops"] for one in alone)


def test_two_of_them_in_a_table_differ_by_a_members_key(place: Path) -> None:
    """And not by all that both are made of."""
    trees = [
        Run(asked(place, *BOTH)).settings,
        Run(asked(place, *BOTH[:1], f"prior.members=[{{name: patches, patches: 8}},{WIDE}]")).settings,
    ]
    flat = [tuple(sorted(flatten(tree).items())) for tree in trees]
    keys = differing(flat)
    assert keys == {"prior.members.0.patches"}
    assert [settings_text(one, keys) for one in flat] == ["prior.members.0.patches=4", "prior.members.0.patches=8"]


def test_its_entries_are_used(place: Path) -> None:
    """`rela clean --unused` leaves what its members have made."""
    needed = [f"{kind}/{name}" for kind, names in Run(asked(place, *BOTH)).member_inputs.items() for name in names]
    used = [entry.title for entry in take_inventory(place).entries if entry.users]
    assert len(needed) == 4 and set(needed) <= set(used)


def test_a_plan_counts_each_member_and_the_joint_targets(tmp_path: Path) -> None:
    run = Run(asked(tmp_path, *BOTH))
    planned = sizes(run, of_run(run), {"train_rate": 100.0, "prior_rate": 10.0})
    assert (planned.width, planned.targets, planned.joined) == (72, 72, 72)
    pipeline.run(run.given, until="transport")
    stored = sum(
        size_of(path)
        for kind in ("features", "targets")
        for path in (tmp_path / "cache" / kind).rglob("*.safetensors")
        if path.stem != "map"
    )
    assert planned.cache_bytes == pytest.approx(stored, rel=0.2)


# -------------------------------------------------------------------------------------------------------------- the run


def test_a_run_and_what_it_is_called(place: Path) -> None:
    run = Run(asked(place, *BOTH))
    result = run.result or {}
    assert run.name.startswith("fake-patches_random-") and run.called["prior"] == "patches+random"
    assert result["prior"] == "ensemble" and result["target_dim"] == 32
    assert result["prior_labels_seen"] == [] and not result["labels_unknown"]
    assert pipeline.run(run.given).status == "found"
    assert from_tree(to_tree(run.given)) == run.given
    assert run.hash not in [Run(asked(place, *words)).hash for words in ALONE]
    swapped = Run(asked(place, "prior=ensemble", f"prior.members=[{WIDE},{NARROW}]"))
    assert swapped.hash != run.hash


def test_the_prior_at_every_view(place: Path) -> None:
    assert pipeline.run(asked(place, *BOTH, "matching.targets=live", "epochs=1")).status == "run"


def test_it_has_seen_what_its_members_have() -> None:
    made = config("prior=ensemble", "prior.members=[cifar10_resnet18,patches,{name: timm, model: resnet18}]").prior
    cifar: object = type("Cifar", (), {"label_set": "cifar10"})
    facts = seen.label_facts(made, cifar)  # type: ignore[arg-type]
    assert facts["labels_seen"] == ["cifar10"] and facts["prior_saw_labels"] and facts["labels_unknown"]
    line = seen.note(made, cifar) or ""  # type: ignore[arg-type]
    assert "prior=cifar10_resnet18 was trained with the labels" in line
    assert "say {name: timm, card.labels_seen: [cifar10]}, or [] for none" in line
    told = config(
        "prior=ensemble", "prior.members=[patches,{name: timm, model: a, card.labels_seen: [imagenet]}]"
    ).prior
    assert seen.labels_seen(told) == ("imagenet",)


# ----------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("[]", r"needs two priors or more, such as prior\.members=\[patches,embedded\]"),
        ("[patches]", "needs two priors or more"),
        ("[patches,patches]", "has patches twice with the same keys"),
        ("[patches,ensemble]", "an ensemble has no ensembles as members; name the priors of both in one list"),
        ("[patches,none]", "prior=none gives no features; leave it out"),
        ("[patches,embeded]", "unknown prior embeded in prior.members, did you mean embedded?"),
        ("[patches,{name: random, widht: 3}]", "unknown key widht of random in prior.members, did you mean width?"),
        ("[patches,{name: random, width: wide}]", r"prior\.members\[1\]\.width=wide must be a whole number"),
        ("[patches,{name: timm}]", "prior=timm needs prior.model=NAME"),
        ("[patches,{width: 3}]", r"a member is the name of a prior, or \{name: NAME, KEY: VALUE\}"),
        ("patches", "must be a list"),
    ],
)
def test_what_cannot_be_meant(members: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        compose(["dataset=fake", "prior=ensemble", f"prior.members={members}"])
    assert len(str(error.value).splitlines()) == 1


def test_members_of_a_part_from_outside_are_its_own() -> None:
    tree = to_tree(config("prior=random"))
    tree["prior"] |= {"_target_": "mine.Choir", "members": ["alto", "bass"]}
    made = from_tree({**tree, "allow": ["mine"]}).prior
    assert made.options["members"] == ["alto", "bass"] and made.singles == (made,)


def test_members_in_a_sweep() -> None:
    words = ["-m", "dataset=fake", "prior=ensemble", "prior.members=[patches,random],[patches,{name: random,width: 4}]"]
    cells, _ = Composer(parse(words)).cells()
    made = [compose(cell).prior.members[1] for cell in cells]
    assert [member.options["width"] for member in made] == [64, 4]


# ------------------------------------------------------------------------------------------------------------- commands


def test_rank(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Members have the keys that their names have in the list."""
    words = ["--priors", "patches,b=random,patches+b", "--n", "40", "dataset=fake", "dataset.size=12",
             "learner.width=4", "patches.patches=4", "b.width=4"]  # fmt: skip
    request = read(words)
    assert "'prior.members=[{name: patches, patches: 4},{name: random, width: 4}]'" in command(
        request, request.entries[2]
    )
    assert rank.main([*words, f"paths.outputs={place / 'rank'}", "format=csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    features = {row["prior"]: int(row["features"]) for row in rows}
    assert features == {"patches": 32, "b": 32, "patches+b": 64}
    assert all(0 < float(row["stability"]) <= 1 for row in rows)


def test_convert_and_train_from_it(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "eff"
    data = [word for word in FAKE if word.startswith("dataset")]
    assert (
        cli.main(["convert", *data, *BOTH, "batch_size=16", f"--to={to}", "--images=copy", f"--outputs={place}"]) == 0
    )
    first = Run(asked(place, *BOTH))
    rest = [word for word in FAKE if not word.startswith("dataset")]
    made = config("dataset=efficient", f"dataset.root={to}", *rest, f"paths.outputs={tmp_path / 'new'}")
    again = Run(made)
    assert again.hash == first.hash and again.called["prior"] == "patches+random"
    pipeline.run(made)
    weights = [load_file(run.folder / "backbone.safetensors") for run in (first, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    opened = api.open(to)
    side = torch.cat(
        [load_file(Run(asked(place, *words)).features.folder / "train.safetensors")["features"] for words in ALONE],
        dim=1,
    )
    assert F.cosine_similarity(opened.transport(side), opened[:]).min() > 0.9999
    card = opened.card["rela"]
    assert card["prior"]["called"] == "patches+random" and card["preprocessing"] and card["cost"]["extract"]["flops"]
    assert "numbered" not in card and "columns and factors say" not in (to / "README.md").read_text()
    labels_come_along(first, EfficientFolder(to), monkeypatch)


def labels_come_along(run: Run, folder: EfficientFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one member it is known whose labels it has seen, of another it is not; the command line may say it."""
    known = {"prior_labels_seen": ["cifar10"], "labels_unknown": True}
    monkeypatch.setattr(writer.seen, "label_facts", lambda *_: known)
    told = writer.Writer(run, folder.root, "copy", 1000).prior_facts({})
    monkeypatch.undo()
    assert "of other members of the ensemble it is not known" in card_text({**folder.facts, "prior": told}, {})
    folder.facts["prior"] |= told
    cifar: object = type("Cifar", (), {"label_set": "cifar10"})
    for said, saw, unknown in ((None, True, True), (("imagenet",), False, False), ((), False, False)):
        facts = seen.label_facts(Brought(folder, said).prior, cifar)  # type: ignore[arg-type]
        assert (facts["prior_saw_labels"], facts["labels_unknown"]) == (saw, unknown)


def test_a_member_is_a_part_of_its_own() -> None:
    made = config(*BOTH).prior
    assert [part.name for part in made.singles] == ["patches", "random"] and made.singles == made.members
    assert Part("a", "b").singles == (Part("a", "b"),)
