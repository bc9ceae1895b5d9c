"""Probes and measures on a GPU, without one: nothing meets on two devices, the host reads little, the answers agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import Probe
from rela_cli.data.batches.cache import ImageStats
from rela_cli.evaluation import measures, protocols
from rela_cli.evaluation.protocols import FITTERS, Task, accuracy
from rela_cli.evaluation.representation import representations
from rela_cli.machine.fake_gpu import Counted
from rela_cli.numerics import logistic
from tests.factories import config
from tests.fake_cuda import GPU, counted, fake_gpu_with_values_of, gpu_code_on_cpu

WIDTH, CLASSES, QUERIES = 24, 4, 256
R = TypeVar("R")
BY_LABELS = [(protocols, name) for name in ("nine_tenths", "some_of_each")]
LABELS = {n: torch.arange(n) % CLASSES for n in (QUERIES, 2048, 8192)}
READS = {"rela": 3, "knn": 3, "sgd_grid": 4}  # of the host in the whole of a protocol


def settings(n: int, steps: int = 8, **changes: object) -> Probe:
    """One epoch of some steps, whatever the number of samples."""
    few = {"rela_epochs": 1, "sgd_grid_epochs": 1, "rela_batch_size": n // steps, "sgd_grid_batch_size": n // steps}
    return replace(config().probe, few_shot_draws=1, **{**few, **changes})  # type: ignore[arg-type]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logistic, "MOST_STEPS", 2)
    monkeypatch.setattr(protocols, "PENALTIES", (1e-2, 1e-3))
    per_class = torch.full((CLASSES,), 500)
    monkeypatch.setattr(protocols, "class_sizes", lambda labels, count: per_class)
    with fake_gpu_with_values_of(*BY_LABELS):
        yield


def walked(protocol: str, n: int, steps: int = 8) -> Counted:
    """A whole protocol on fake features."""
    task = Task(torch.zeros(n, WIDTH, device=GPU), LABELS[n], torch.zeros(QUERIES, WIDTH, device=GPU), LABELS[QUERIES])
    return counted(lambda: accuracy(FITTERS[protocol](task, settings(n, steps))[0], task.test_labels))


@pytest.mark.parametrize("protocol", FITTERS)
def test_no_protocol_reads_more_for_more_samples(protocol: str, fake_gpu: None) -> None:
    few, many = (walked(protocol, n) for n in (2048, 8192))
    assert len(few.waits) == len(many.waits) <= READS.get(protocol, 400)
    assert few.total > 10, "the whole protocol was walked"


def test_launches_of_a_step(fake_gpu: None) -> None:
    for protocol, most in {"rela": 13, "sgd_grid": 30}.items():
        few, many = (walked(protocol, 2048, steps).total for steps in (8, 16))
        assert (many - few) / 8 <= most, protocol


def test_an_evaluation_of_the_objective_is_three_reads(fake_gpu: None) -> None:
    x, labels = torch.zeros(8192, WIDTH, device=GPU), torch.zeros(8192, dtype=torch.long, device=GPU)
    samples, weights = logistic.Samples(x, labels, CLASSES), torch.zeros(WIDTH + 1, CLASSES, device=GPU).double()
    objective = counted(lambda: samples.loss(weights, 1e-3, torch.float32))
    assert len(objective.waits) == 1 and objective.total <= 40
    assert len(counted(lambda: logistic.inverse_curvature(samples, weights, 1e-3), truth=False).waits) == 2
    search = counted(lambda: logistic.line_search(lambda w: (0.0, w), weights, 0.0, weights, weights), number=1.0)
    assert len(search.waits) == 1 + 20, "one for each of 20 places, besides what the objective reads"


MEASURES: dict[str, Callable[[Tensor], object]] = {
    "effective_rank": measures.effective_rank,
    "rankme": measures.rankme,
    "dimension_std": measures.dimension_std,
    "lidar": lambda x: measures.lidar(x.view(-1, 4, WIDTH)),
    "linear_cka": lambda x: measures.linear_cka(x, x),
    "mutual_neighbours": lambda x: measures.mutual_neighbours(x, x, 5),
    "knn_top1": lambda x: measures.knn_top1(x, x[:, 0].long(), x, x[:, 0].long(), 5, 0.1),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_one_read_or_two(name: str, fake_gpu: None) -> None:
    features = torch.zeros(2000, WIDTH, device=GPU)
    assert len(counted(lambda: MEASURES[name](features)).waits) == (2 if name == "knn_top1" else 1)


def test_representations_stay_on_the_device(fake_gpu: None) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, WIDTH)).to(GPU)
    data = ImageStats(torch.zeros(3), torch.ones(3), 8)
    found: list[Tensor] = []
    for blocks in (2, 8):
        images = torch.zeros(blocks * 32, 3, 8, 8, dtype=torch.uint8, device=GPU)
        waits = counted(lambda images=images: found.append(representations(network, images, data, 32, GPU))).waits
        assert len(waits) == 2, "mean and deviation of the channels, and nothing for a block"
        assert found[-1].is_cuda and found[-1].shape == (blocks * 32, WIDTH)


# ------------------------------------------------------------------------------------------ the answers are the CPU's


def clouds(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clouds on features of very different scales."""
    random, labels = torch.Generator().manual_seed(seed), torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))
    return (centres[labels] + 1.5 * torch.randn(n, WIDTH, generator=random)) * torch.logspace(-1, 1, WIDTH), labels


@pytest.mark.parametrize("protocol", FITTERS)
def test_the_way_for_a_gpu_gives_the_cpus_answers(protocol: str) -> None:
    task, how = Task(*clouds(1200, 1), *clouds(400, 2)), settings(1200, rela_epochs=3)
    ours, facts = FITTERS[protocol](task, how)
    with gpu_code_on_cpu():
        theirs, same = FITTERS[protocol](task, how)
    assert facts == same
    assert torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4 if protocol != "rela" else 1e-5)
    assert accuracy(ours, task.test_labels)["top1"] == pytest.approx(
        accuracy(theirs, task.test_labels)["top1"], abs=0.003
    )


def test_the_gradient_by_hand_is_autograds() -> None:
    linear, (x, labels) = nn.Linear(WIDTH, CLASSES).double(), clouds(100, 3)
    F.cross_entropy(linear(x.double()), labels).backward()  # type: ignore[no-untyped-call]
    theirs = [weight.grad.clone() for weight in linear.parameters() if weight.grad is not None]
    protocols.add_gradient(linear, x.double(), labels, torch.arange(CLASSES))
    for ours, other in zip((linear.weight.grad, linear.bias.grad), theirs, strict=True):
        assert ours is not None and (ours - other).abs().max() < 1e-14


def test_all_inverses_at_once_are_those_of_each() -> None:
    x = torch.randn(3, 200, WIDTH, generator=torch.Generator().manual_seed(1))
    matrices = x.transpose(1, 2) @ x / 200
    each = torch.stack([logistic.inverse(matrix) for matrix in matrices])
    assert torch.allclose(logistic.inverse_of_all(matrices), each, rtol=1e-4, atol=1e-5)
    assert torch.equal(logistic.inverse_of_all(-matrices), torch.eye(WIDTH).expand(3, -1, -1))


# ----------------------------------------------------------------------------------------------- faults are put back


def test_a_label_that_is_left_on_the_cpu_is_found(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "sent", lambda tensor, device: tensor)
    with pytest.raises(RuntimeError, match="device"):
        walked("rela", 2048)


def test_a_read_for_each_block_is_found(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(self: logistic.Samples, work: Callable[[Tensor, Tensor], R]) -> list[R]:
        parts = zip(self.rows.split(1024), self.labels.split(1024), strict=True)
        return [work(x, y) for x, y in parts if x.sum().item() < 1]

    monkeypatch.setattr(logistic.Samples, "shared_out", reading)
    few, many = (len(walked("lbfgs", n).waits) for n in (2048, 8192))
    assert many >= few + 6
