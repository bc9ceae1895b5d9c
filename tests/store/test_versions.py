"""What identities hold of classes, and how results of older versions are read."""

import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import pytest

from rela_cli.config.compose import compose
from rela_cli.config.schema import CONF_DIR, HOMES, Part
from rela_cli.pipeline.run import Run
from rela_cli.report.results.older_settings import settings_of_today
from rela_cli.report.results.settings import differing, flatten
from rela_cli.store.files import fingerprint
from rela_cli.store.outputs import take_inventory
from rela_cli.store.versions import VERSIONS, is_older

OURS = "rela_cli.learners.resnet.resnet18"


def modules_of(group: str) -> list[str]:
    name = HOMES[group].rstrip(".")
    module = importlib.import_module(name)
    return [name, *(info.name for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."))]


@pytest.mark.parametrize("group", HOMES)
def test_names_that_a_yaml_can_call_are_unique_in_their_group(group: str) -> None:
    homes: dict[str, set[str]] = {}
    for name in modules_of(group):
        for found, value in vars(importlib.import_module(name)).items():
            is_callable = inspect.isclass(value) or inspect.isfunction(value)
            if is_callable and value.__module__ == name and not found.startswith("_"):
                homes.setdefault(found, set()).add(name)
    called = {path.read_text().partition("\n_target_: ")[2].split()[0].rpartition(".")[2] for path in yamls(group)}
    assert {found: homes[found] for found in called if len(homes[found]) != 1} == {}


def yamls(group: str) -> list[Path]:
    return [path for path in (CONF_DIR / group).glob("*.yaml") if "\n_target_: " in path.read_text()]


def test_moving_a_class_changes_no_hash_and_another_class_does() -> None:
    def hash_of(target: str, inner: str = OURS) -> str:
        return fingerprint(Part("x", target, {"width": 8, "learner": {"_target_": inner, "stem": "cifar"}}).identity)

    moved = "rela_cli.learners.elsewhere.deep.resnet18"
    assert hash_of(OURS) == hash_of(moved) == hash_of(OURS, moved)
    others = [OURS.replace("18", "34"), "mypkg.learners.resnet.resnet18", "rela_client.resnet18"]
    assert len({hash_of(OURS), *map(hash_of, others), *(hash_of(OURS, other) for other in others)}) == 7
    assert hash_of("mypkg.a.Net") != hash_of("mypkg.b.Net")


@pytest.mark.parametrize(("name", "kind"), [("whitening", "Whitening"), ("pca", "PCA")])
def test_keys_younger_than_the_artifacts_change_no_name_until_they_are_used(name: str, kind: str) -> None:
    def run_of(*words: str) -> Run:
        return Run(compose(["prior=patches", f"transport={name}", *words]))

    assert run_of().config.transport.identity == {"name": name, "class": kind, "max_dim": 2048}  # as before them
    assert run_of().settings["transport"] == {"name": name, "class": kind, "max_dim": 2048}
    used = [["transport.dims=all"], ["transport.dims=8"], ["transport.center=false"]]
    used += [["transport.power=0.5"]] if name == "whitening" else []
    assert len({run_of(*words).hash for words in ([], *used)}) == len(used) + 1
    assert len({run_of(*words).targets.hash for words in ([], *used)}) == len(used) + 1


@pytest.mark.parametrize("words", [["prior=none"], ["prior=random_learner"], ["prior=patches"]])
def test_a_table_of_old_and_new_runs_shows_the_version_as_the_difference(words: list[str]) -> None:
    new = json.loads(json.dumps(Run(compose(words)).settings))
    old = as_before(new) | {"version": 1}
    assert "_target_" in old["learner"] and "class" not in json.dumps(old)
    flats = [tuple(sorted(flatten(settings).items())) for settings in (new, settings_of_today(old))]
    assert differing(flats) == {"version"}
    assert settings_of_today(new) == new


def as_before(settings: dict) -> dict:
    """Settings as versions before 2 wrote them."""
    text = json.dumps(settings).replace('"class": "', '"_target_": "rela_cli.some.where.')
    found = json.loads(text)
    if isinstance(found["prior"], dict) and "_target_" in found["prior"]:
        found["prior"]["target"] = found["prior"].pop("_target_")
    return found


def test_what_an_older_version_made_is_said_to_be_older(tmp_path: Path) -> None:
    for version in (VERSIONS["train"] - 1, VERSIONS["train"]):
        folder = tmp_path / "runs" / f"run-{version}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"status": "finished"}))
        (folder / "result.json").write_text(json.dumps({"settings": {"version": version}}))
    for version in (VERSIONS["extract"] - 1, VERSIONS["extract"]):
        folder = tmp_path / "cache" / "features" / str(version)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"files": {}, "spec": {"version": version}}))
    found = take_inventory(tmp_path)
    assert [run.is_older for run in found.runs] == [entry.is_older for entry in found.entries] == [True, False]
    assert not is_older("run", {}) and not is_older("features", {})
