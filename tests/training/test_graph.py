"""Steps by a recorded graph are the steps operator by operator, bit for bit; what a graph cannot hold is said.

A CUDA graph repeats kernels on the addresses that they were recorded with. `Tape` does the same on a CPU: it repeats
torch's operators on the very tensors, so whatever the host decides, reads or makes anew in a step is found here too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

from rela_cli.config.lengths import lengths
from rela_cli.data.batches.boxes import CachedViews, draw_boxes
from rela_cli.data.batches.cache import Split
from rela_cli.data.batches.tokens import TokenTargets
from rela_cli.errors import RelaError
from rela_cli.training import graph
from rela_cli.training.goals import Goals
from rela_cli.training.graph import GraphedStep, hindrance, noted, take
from rela_cli.training.trainer import Trainer
from tests.factories import config, pixels, stats_of, trainer
from tests.promises.harness import METHODS, differing, ending, small, train, untimed, words

HOST = ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "equal")  # the host reads, or makes a tensor
LONG = ("epochs=6", "switch=fixed", "switch.at=0.5")  # 18 steps, 9 a phase: 3 warm, 2 compared, 4 by the graph


class Tape(TorchDispatchMode):
    """Operators with the tensors that they were given and those that they made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Once more, from the same addresses to the same addresses."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if not any(value.alias_info for value in func._schema.returns):
                for old, new in zip(trees.tree_leaves(result), trees.tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


def by_tape(loop: Trainer) -> Trainer:
    """A trainer that takes its steps as on a GPU, with a tape for the graph; it notes how often that was used."""

    def record(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        put_back = noted(loop)
        with Tape() as tape:
            result = work()
        put_back()
        names = {func.overloadpacket.__name__ for func, *_ in tape.calls}
        assert not names & set(HOST), "the host has no part in a recorded step"
        loop.tapes.append(tape)  # type: ignore[attr-defined]
        return result, tape.replay

    loop.tapes = []  # type: ignore[attr-defined]
    loop.graph = GraphedStep(loop, record)
    return loop


@pytest.mark.parametrize("method", METHODS)
def test_a_run_by_graphs_is_the_run_without_to_the_bit(method: str, tmp_path: Path, capsys: Any) -> None:
    """Both phases, with dropout, the linear probe, cosine momenta, a rising temperature and frozen prototypes."""
    found = {}
    for kind, made in (("eager", lambda loop: loop), ("graph", by_tape)):
        loop = train(tmp_path / kind, made(small(*words(method), *LONG)))
        found[kind] = untimed(ending(loop, tmp_path / kind))
    assert differing(found["graph"], found["eager"]) == []
    assert len(loop.tapes) == (3 if method == "swav" else 2), "one a phase, and one more for frozen prototypes"
    assert not loop.graph.is_off and "are one CUDA graph" in capsys.readouterr().err


def test_views_that_were_cut_before_and_their_targets_come_in_from_outside(tmp_path: Path) -> None:
    """Which of them is shown depends on the epoch, so no graph may hold it."""
    found = []
    for made in (lambda loop: loop, by_tape):
        loop = trainer("epochs=4", "switch=never")
        boxes = draw_boxes(loop.config.matching.view, True, 8, torch.arange(64), 3)
        assert loop.goals is not None
        targets = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(3))
        loop.goals = replace(loop.goals, cached=CachedViews(boxes, targets, seed=0))
        folder = tmp_path / str(len(found))
        found.append(untimed(ending(train(folder, made(loop)), folder)))
    assert differing(*found) == []


def test_so_do_the_maps_that_cells_are_matched_to(tmp_path: Path) -> None:
    """And where each view lies in them."""
    found = []
    for made in (lambda loop: loop, by_tape):
        asked = config("batch_size=16", "epochs=3", "switch=never", "extract.tokens=true")
        images, random = pixels(64, 8), torch.Generator().manual_seed(1)
        maps = TokenTargets(torch.randn(64, 1, 9, 5, generator=random), 8, 8)
        split, targets = Split(images, torch.arange(64) % 4), torch.randn(64, 8, generator=random)
        loop = Trainer(asked, lengths(asked, 64), split, Goals(targets, tokens=maps), stats_of(images))
        folder = tmp_path / str(len(found))
        found.append(untimed(ending(train(folder, made(loop)), folder)))
    assert differing(*found) == []


def broken(loop: Trainer, how: str) -> None:
    """A step that a graph gets wrong, by the host's doing."""
    drawn, steps = loop.views[2].drawn, [0.0]

    def wrong(*given: Any) -> list[Tensor]:
        steps[0] += 1
        views = drawn(*given)
        if how == "reads":
            views[0].sum().item()
        if how == "counts":
            return [view * (steps[0] % 2) for view in views]
        return [view / (steps[0] != 4) for view in views] if how == "is NaN" else views  # in the recorded step

    loop.views[2].drawn = wrong  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("how", "why"),
    [("reads", "cannot be recorded (Assert"), ("counts", "a replay gives loss"), ("is NaN", "norm nan")],
)
def test_what_a_graph_gets_wrong_is_noticed_and_steps_are_taken_without(how: str, why: str, capsys: Any) -> None:
    loop = by_tape(trainer("epochs=3", target_dim=None))
    broken(loop, how)
    loop.fit(Quiet())  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert loop.graph is not None and loop.graph.is_off and loop.graph.captured == {}
    assert said.count("runtime.step=graph: ") == 1 and why in said and "operator by operator" in said
    assert loop.position.step == 12


FULL = "CUDA out of memory. Tried to allocate 20.00 MiB"


@pytest.mark.parametrize(
    ("when", "why"), [("record", "cannot be recorded (OutOf"), ("replay", "cannot be compared with the step (OutOf")]
)
def test_a_gpu_that_is_full_costs_the_graph_and_nothing_else(
    when: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """While it records, and while a step is taken both ways; the numbers are those of a run that never tried."""

    def full(loop: Trainer) -> Trainer:
        taped = by_tape(loop).graph
        assert taped is not None
        record = taped.record

        def fails(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
            result, replay = record(work)
            if when == "record":
                raise torch.OutOfMemoryError(FULL)
            held.append(weakref.ref(result))

            def half_done() -> None:
                replay()
                raise torch.OutOfMemoryError(FULL)

            return result, half_done

        taped.record = fails
        loop.tapes = Nowhere()  # type: ignore[attr-defined]
        return loop

    held: list[weakref.ref[Tensor]] = []
    freed: list[list[Tensor | None]] = []
    monkeypatch.setattr(graph, "free_unused", lambda: freed.append([tensor() for tensor in held]))
    found = []
    for made in (lambda loop: loop, full):
        folder = tmp_path / str(len(found))
        loop = train(folder, made(small("method=byol", *LONG)))
        found.append(untimed(ending(loop, folder)))
    assert differing(*found) == []
    said = capsys.readouterr().err
    assert loop.graph is not None and loop.graph.is_off and why in said and said.count("runtime.step=graph: ") == 1
    assert freed == [[None] * len(held)], "the graph is gone by then"


def test_a_gpu_that_answers_nothing_more_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def lost(*_: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    loop = by_tape(trainer("epochs=3", target_dim=None))
    assert loop.graph is not None
    loop.graph.record = lost
    monkeypatch.setattr(graph, "free_unused", lost)
    with pytest.raises(RelaError, match=r"nothing more after that .*encountered\): the same command with runtime.step"):
        loop.fit(Quiet())  # type: ignore[arg-type]
    assert "the step cannot be recorded (RuntimeError: CUDA error" in capsys.readouterr().err


class Nowhere(list[Any]):
    """Keeps nothing."""

    def append(self, item: Any) -> None:
        pass


def test_the_graph_of_a_phase_that_is_over_is_dropped_before_the_next_is_recorded() -> None:
    """Its memory is needed for the steps between."""
    loop = by_tape(trainer("epochs=4", "switch=fixed", "switch.at=0.5"))
    assert loop.graph is not None
    seen = []
    update = loop.update
    loop.update = lambda: (update(), seen.append((loop.position.phase, len(loop.graph.captured))))[0]  # type: ignore
    loop.fit(Quiet())  # type: ignore[arg-type]
    first = [count for phase, count in seen if phase == 2][:3]
    assert (1, 1) in seen and first == [0, 0, 0]


class Quiet:
    def write(self, record: object) -> None:
        pass


def test_after_an_error_in_recording_torch_is_on_its_own_stream_again_with_its_own_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch leaves neither by itself where a capture cannot be ended; the driver is made up."""
    stream, state = ["own"], ["recording"]

    class Generator:
        def clone_state(self) -> str:
            return "before"

        def graphsafe_set_state(self, given: str) -> None:
            state[0] = given

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            self.before, stream[0] = stream[0], self.name

        def __exit__(self, *_: object) -> None:
            stream[0] = self.before

    class Capture(Stream):
        def __exit__(self, *_: object) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    for name, made in {
        "CUDAGraph": lambda: None,
        "default_generators": [Generator()],
        "current_device": lambda: 0,
        "current_stream": lambda: "own",
        "stream": Stream,
        "graph": lambda _: Capture("side"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, made)
    with pytest.raises(RuntimeError, match="during capture"):
        graph.by_cuda_graph(lambda: torch.ones(()))
    assert (stream, state) == (["own"], ["before"])


def test_without_a_gpu_one_line_says_that_it_has_no_effect(capsys: Any) -> None:
    loop = trainer("runtime.step=graph")
    assert loop.graph is None
    assert "runtime.step=graph has no effect: there is no GPU here" in capsys.readouterr().err
    assert trainer().graph is None and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("word", "why"), [("accumulate=2", "in parts"), ("runtime.compile=default", "are compiled"), ("seed=0", "")]
)
def test_what_is_not_recorded_is_named(word: str, why: str) -> None:
    found = hindrance(config(word), torch.device("cuda"))
    assert why in found and bool(why) == bool(found)


def test_a_method_from_elsewhere_may_read_on_the_host() -> None:
    made = config()
    made = replace(made, method=replace(made.method, target="theirs.Theirs"))
    assert "is not rela's own" in hindrance(made, torch.device("cuda"))


def test_the_recorded_step_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """`take` from tensors that stay, against the loop's own `add_gradients`."""
    loops = [trainer("method=byol") for _ in range(2)]
    rows = torch.arange(16)
    images = loops[0].images[rows]  # type: ignore[index]
    one = loops[0].add_gradients(rows, images, 1)
    other = take(loops[1], graph.given_of(loops[1], rows, images, 1))
    assert torch.equal(one, other)
    pairs = zip(loops[0].trainable, loops[1].trainable, strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
