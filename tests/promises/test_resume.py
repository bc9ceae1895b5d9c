"""Rows 1, 11 and 12 of docs/reliability.md, inside one process: what is gone on with is what would have been."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rela_cli.config.lengths import lengths
from rela_cli.data.batches import loader
from rela_cli.data.batches.cache import Split
from rela_cli.data.batches.loader import DiskImages
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import RelaError
from rela_cli.training import checkpoint
from rela_cli.training.goals import Goals
from rela_cli.training.trainer import Trainer
from tests.factories import config, pixels, stats_of
from tests.promises.harness import (
    ACCOUNT,
    METHODS,
    RUN,
    STEPS,
    SWITCH,
    Killed,
    differing,
    ending,
    keep_until,
    small,
    train,
    untimed,
    words,
)

Make = Callable[[], Trainer]
STOPS = (1, 3, 4, 5, 8)  # in mid-epoch; between epochs; before the switch; after its first step; in mid-epoch again


@pytest.fixture(autouse=True)
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are kept, so that one run can be gone on with from each of its steps."""
    monkeypatch.setattr(checkpoint, "KEPT_CHECKPOINTS", 100)


def gone_on(tmp_path: Path, make: Make, step: int, change: Any = None) -> dict[str, Any]:
    """From a copy of tmp_path/whole, where every step was saved, and which went on to the end."""
    folder = tmp_path / "again"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "whole", folder)
    keep_until(folder, step)
    return ending(train(folder, make(), change=change), folder)


def assert_exact(tmp_path: Path, make: Make, stops: tuple[int, ...]) -> None:
    plain = tmp_path / "plain"
    expected = ending(train(plain, make()), plain)
    train(tmp_path / "whole", make(), every=0)
    assert len(list((tmp_path / "whole").glob("checkpoint-*"))) == STEPS
    for step in stops:
        assert differing(untimed(gone_on(tmp_path, make, step)), untimed(expected)) == [], step


@pytest.mark.parametrize("method", METHODS)
def test_every_method_before_in_and_after_the_switch(tmp_path: Path, method: str) -> None:
    assert_exact(tmp_path, lambda: small(*words(method), *SWITCH), STOPS)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize(
    "switch", [("switch=adaptive", "switch.constants=reference", "switch.threshold=0.381"), ("switch=never",)]
)
def test_every_optimizer_and_switch(tmp_path: Path, optimizer: str, switch: tuple[str, ...]) -> None:
    assert_exact(tmp_path, lambda: small(f"optimizer={optimizer}", "optimizer.schedule=cosine", *switch), (2, 4, 6))


def test_the_plain_method(tmp_path: Path) -> None:
    assert_exact(tmp_path, lambda: small(*words("moco_v3"), target_dim=None), (2, 6, 9))


def test_a_killed_run_goes_on_and_repeats_one_step(tmp_path: Path) -> None:
    make = lambda: small(*words("byol"), *SWITCH)  # noqa: E731
    expected = ending(train(tmp_path / "plain", make()), tmp_path / "plain")
    for stop in (2, 6, 7):
        with pytest.raises(Killed):
            train(tmp_path / "run", make(), every=0, stop=stop)
        assert int(checkpoint.Checkpoints(tmp_path / "run", 0).found()[0].name.split("-")[1]) == stop - 1
    found = ending(train(tmp_path / "run", make()), tmp_path / "run")
    assert differing(untimed(found), untimed(expected)) == []


def test_the_end_of_a_phase_and_the_last_step_are_saved_whatever_the_interval(tmp_path: Path) -> None:
    train(tmp_path / "run", small(*SWITCH))
    steps = [int(path.name.split("-")[1]) for path in checkpoint.Checkpoints(tmp_path / "run", 0).found()]
    assert steps == [STEPS, 5]


# ----------------------------------------------------------------------------------------------------------- row 11


def delicate() -> Trainer:
    """Where everything counts: a teacher, a centre, a temperature that rises, a switch that waits, a dropout."""
    return small(
        *words("dino"),
        "switch=adaptive",
        "switch.constants=reference",
        "switch.threshold=0.381",
        "optimizer.schedule=cosine",
    )


def fresh_state(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "fresh").mkdir(exist_ok=True)
    loop = delicate()
    return {**loop.checkpointing.state(), "random": torch.Generator().manual_seed(6).get_state()}


def fields() -> dict[str, Callable[[str], bool]]:
    """Each field, and the keys of the flattened state that it is made of."""
    loop = delicate()
    buffers = {name for name, _ in loop.trainee.named_buffers()}
    found: dict[str, set[str]] = {}
    for key in loop.trainee.state_dict():
        part = ".".join(key.split(".")[:2])
        found.setdefault(f"{'buffers' if key in buffers else 'weights'} of {part}", set()).add(key)
    return found  # type: ignore[return-value]


TOP = ("optimizer", "switch", "step", "phase", "switch_step", "collapsed", "traced", "meter", "random", *ACCOUNT)
TENSORS = fields()


def test_these_are_all_fields_there_are() -> None:
    loop = delicate()
    assert {*TOP, "trainee", "random_gpu", "linear"} == loop.checkpointing.state().keys()
    assert set().union(*TENSORS.values()) == loop.trainee.state_dict().keys()  # type: ignore[arg-type]
    kinds = [name for name in TENSORS if "teacher" in name or "loss" in name or "matching" in name]
    assert len(TENSORS) >= 6 and len(kinds) >= 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delicate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "KEPT_CHECKPOINTS", 100)
        loop = train(folder / "whole", delicate(), every=0)
    step = loop.position.switch_step
    assert step is not None and 3 < step < 7, step
    return folder


def keep(state: dict[str, Any]) -> None:
    state["collapsed"], state["peak_memory"] = True, 1 << 50  # as of a run that has, and took a lot


@pytest.fixture(scope="module")
def kept(whole: Path) -> dict[int, dict[str, Any]]:
    """What is left of a run that goes on with all of its fields, from phase 1 and from phase 2."""
    return {step: gone_on(whole, delicate, step, keep) for step in (2, 7)}


@pytest.mark.parametrize("field", [*TOP, *TENSORS])
def test_a_dropped_field_is_seen(whole: Path, kept: dict[int, dict[str, Any]], field: str) -> None:
    """A run that goes on with one field as a fresh run has it ends elsewhere, from phase 1 or from phase 2."""
    fresh = fresh_state(whole)

    def drop(state: dict[str, Any]) -> None:
        if field in TOP:
            state[field] = fresh[field]
        for key in TENSORS.get(field, ()):  # type: ignore[attr-defined]
            state["trainee"][key] = fresh["trainee"][key]

    def lose(state: dict[str, Any]) -> None:
        keep(state)
        drop(state)

    assert any(differing(kept[step], gone_on(whole, delicate, step, lose)) for step in kept)


def test_the_logs_are_cut_back(whole: Path) -> None:
    """Else the steps that are repeated would stand in them twice."""
    found = gone_on(whole, delicate, 4)
    assert [record["step"] for record in found["metrics"]] == [3, 6, 9]
    assert found["trace"].count('"step": 3,') == 1


def test_the_memory_of_a_fused_optimizer_lies_as_its_parameters_do(whole: Path) -> None:
    """Fused AdamW walks both in memory's order and says nothing where they differ."""
    shutil.rmtree(whole / "again", ignore_errors=True)
    shutil.copytree(whole / "whole", whole / "again")
    loop = train(whole / "again", delicate())
    values = [(p, loop.optimizer.state[p]) for p in loop.trainable if loop.optimizer.state[p]]
    assert any(p.ndim == 4 and not p.is_contiguous() for p, _ in values)
    assert all(memory["exp_avg"].stride() == p.stride() for p, memory in values)


def test_a_checkpoint_of_another_shape_is_named(whole: Path) -> None:
    shutil.rmtree(whole / "again", ignore_errors=True)
    shutil.copytree(whole / "whole", whole / "again")
    with pytest.raises(RelaError, match=r"does not fit learner=resnet18, method=byol"):
        train(whole / "again", small(*words("byol")))
    with pytest.raises(RelaError, match=r"is of step 9, and this run has 3"):
        train(whole / "again", small(*words("dino"), "epochs=1"))


# ----------------------------------------------------------------------------------------------------------- row 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(pixels(64, 20)):
        path = root / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_the_number_of_workers_does_not_matter(
    tmp_path: Path, photos: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0: all in memory. Stopped in mid-epoch with that many decoding threads, gone on with by three."""
    options: dict[str, Any] = {"limit": None, "test_limit": None, "seed": 0, "flip": True, "decode_size": 16}
    dataset = ImageFolder(root=str(photos), image_size=12, on_disk=True, **options)

    def make(threads: int) -> Trainer:
        monkeypatch.setattr(loader, "cores", lambda: [*range(max(1, threads))])
        lazy = DiskImages(dataset, "train", torch.arange(64), 16)
        memory = lazy[:]
        made = config(*words("byol"), *SWITCH, "batch_size=16", "epochs=3", "budget=0.75")
        stats = stats_of(memory)
        stats = type(stats)(stats.mean, stats.std, 12)
        goals = Goals(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)))
        return Trainer(made, lengths(made, 64), Split(lazy if threads else memory, None), goals, stats)

    expected = ending(train(tmp_path / "plain", make(0)), tmp_path / "plain")
    for stop in (3, 6):  # within steps 3 and 6: steps 2 and 5 are in mid-epoch
        with pytest.raises(Killed):
            train(tmp_path / "run", make(workers), every=0, stop=stop)
    found = ending(train(tmp_path / "run", make(3)), tmp_path / "run")
    assert differing(untimed(found), untimed(expected)) == []


def test_what_was_drawn_before_training_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's generator starts anew with the training, so a run whose stages were cached has the same dropout."""
    from rela_cli.pipeline import pipeline
    from rela_cli.training import trainee

    build = trainee.build_backbone

    def with_dropout(*arguments: Any) -> torch.nn.Module:
        backbone = build(*arguments)
        backbone.register_forward_hook(lambda m, _, x: torch.nn.functional.dropout(x, 0.5, m.training))
        return backbone

    monkeypatch.setattr(trainee, "build_backbone", with_dropout)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        words = (*RUN, "epochs=1", "probe.baselines=false", f"paths.outputs={tmp_path / str(seed)}")
        folder = pipeline.run(config(*words)).folder
        assert folder is not None
        found.append(load_file(folder / "backbone.safetensors"))
    assert differing(*found) == []
