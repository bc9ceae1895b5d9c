"""What a record says of speed, by a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rela_cli.training import meter as module
from rela_cli.training.meter import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def slow_batches(clock: Clock) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Three, two seconds each."""
    for _ in range(3):
        clock.now += 2
        yield torch.empty(0), torch.empty(0)


def train(meter: Meter, clock: Clock) -> None:
    """Three steps of three seconds, and two more for each batch."""
    for step, _ in enumerate(meter.waiting(slow_batches(clock))):
        clock.now += 3
        meter.steps += 1
        meter.add(torch.tensor([float(step)]))


def test_mean_loss_images_a_second_and_the_share_of_waiting(clock: Clock) -> None:
    meter = Meter(batch_size=10)
    train(meter, clock)
    assert meter.read() == {"loss": 1.0, "images_per_second": 2.0, "data_wait": 0.4}


def test_another_meter_goes_on_where_one_stood(clock: Clock) -> None:
    first, second = Meter(batch_size=10), Meter(batch_size=10)
    train(first, clock)
    state = first.state()
    clock.now += 1000
    second.load_state(state)
    train(second, clock)
    assert second.read() == {"loss": 1.0, "images_per_second": 2.0, "data_wait": 0.4}


def test_the_progress_line_is_read_once_a_second(clock: Clock) -> None:
    meter = Meter(batch_size=10)
    train(meter, clock)
    assert meter.words("matching") == "matching, loss 2.0000, 2 images/s"
    meter.add(torch.tensor([7.0]))
    clock.now += 0.5
    assert "loss 2.0000" in meter.words("matching")
    clock.now += 1
    assert "loss 7.0000" in meter.words("matching")


def test_the_progress_line_stays_until_a_loss_is_read_after_a_record(clock: Clock) -> None:
    meter = Meter(batch_size=10)
    assert meter.words("matching") == ""
    train(meter, clock)
    said = meter.words("matching")
    meter.restart()
    clock.now += 5
    assert meter.words("matching") == said == "matching, loss 2.0000, 2 images/s"
    meter.steps += 1
    meter.add(torch.tensor([7.0]))
    assert meter.words("simclr") == "simclr, loss 7.0000, 2 images/s"
