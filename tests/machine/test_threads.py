"""How many threads a run computes with: all, one where that is clearly faster, or those that it was begun with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rela_cli.machine import threads
from rela_cli.stages.train import try_step, unchanged
from rela_cli.training.checkpoint import Checkpoints
from tests.factories import config, trainer
from tests.promises.harness import differing, ending, small, train, untimed

RUNTIME = replace(config().runtime, threads=None)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has said a number, and there are two."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: [0, 1, 2, 3])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def costing(monkeypatch: pytest.MonkeyPatch, by_one: float, by_two: float) -> Callable[[], None]:
    """Work on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += by_one if torch.get_num_threads() == 1 else by_two

    return work


@pytest.mark.parametrize(("by_two", "expected"), [(0.06, 2), (0.1, 2), (0.14, 2), (0.16, 1), (9.0, 1)])
def test_one_is_taken_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_two: float, expected: int
) -> None:
    assert threads.choose(RUNTIME, CPU, None, costing(monkeypatch, 0.1, by_two)) == expected
    assert torch.get_num_threads() == expected
    said = capsys.readouterr().err
    assert ("runtime.threads=2 says otherwise" in said) == (expected == 1)


@pytest.mark.parametrize(
    ("recorded", "by_hand", "expected", "words"),
    [
        (1, None, 1, "it goes on with 1 thread, as it was begun"),
        (2, None, 2, ""),
        (8, None, 2, "begun with 8 threads, it goes on with 2: its weights may differ in their last bits"),
        (1, 2, 2, "begun with 1 thread, it goes on with 2: its weights may differ in their last bits"),
        (2, 2, 2, ""),
    ],
)
def test_a_run_keeps_the_number_that_it_was_begun_with(
    capsys: pytest.CaptureFixture[str], recorded: int, by_hand: int | None, expected: int, words: str
) -> None:
    def work() -> None:
        raise AssertionError("nothing to try")

    assert threads.choose(replace(RUNTIME, threads=by_hand), CPU, recorded, work) == expected == torch.get_num_threads()
    assert capsys.readouterr().err == (f"rela: {words}\n" if words else "")


def test_a_users_word_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = costing(monkeypatch, 0.1, 9.0)
    assert threads.choose(replace(RUNTIME, threads=2), CPU, None, slow) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose(RUNTIME, CPU, None, slow) == 2


def test_a_trial_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """The same run, bit for bit, as one that tries nothing, at the same number of threads."""
    torch.set_num_threads(1)
    words = ("method=dino", "method.hidden_dim=8", "method.projection_dim=8", "method.prototypes=8")
    expected = ending(train(tmp_path / "a", small(*words)), tmp_path / "a")
    tried = small(*words)
    tried.trainee.train()
    with unchanged(tried):
        rows, views = first(tried)
        threads.by_turns(lambda: try_step(tried, views, rows), (1, 1))
    assert all(parameter.grad is None for parameter in tried.trainable)
    assert differing(untimed(ending(train(tmp_path / "b", tried), tmp_path / "b")), untimed(expected)) == []


def first(loop: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Rows and views of the first batch."""
    batch = next(loop.rank_batches(0))  # type: ignore[attr-defined]
    return batch, loop.make_views(loop.images[batch], batch, 0)  # type: ignore[attr-defined]


def test_checkpoints_say_with_how_many(tmp_path: Path) -> None:
    state = trainer().checkpointing.state()
    torch.set_num_threads(2)
    Checkpoints(tmp_path, 0).save(3, 1, state)
    saved = Checkpoints(tmp_path, 0).latest()
    assert saved is not None and saved.threads == 2


def test_more_threads_than_cores_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The number is kept, since the bits of a run depend on it."""
    monkeypatch.setattr(threads, "cores", lambda: [0])
    assert threads.choose(replace(RUNTIME, threads=2), CPU, None, lambda: None) == 2
    assert "2 threads on 1 core take turns" in capsys.readouterr().err
