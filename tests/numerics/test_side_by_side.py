"""Blocks worked on side by side: answers in order, few held, errors passed on, threads as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from rela_cli.numerics.side_by_side import map_blocks
from rela_cli.transports.moments import Moments
from rela_cli.transports.pca import Whitening


@pytest.fixture(params=[1, 2, 9])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_answers_come_in_order_and_threads_are_dealt_out(threads: int) -> None:
    def work(number: int) -> tuple[int, int]:
        time.sleep(0.02 * (number % 3 == 0))  # the first is the slowest
        return number, torch.get_num_threads()

    found = list(map_blocks(work, range(20)))
    assert [number for number, _ in found] == list(range(20))
    assert {own for _, own in found} == {{1: 1, 2: 1, 9: 2}[threads]}
    assert torch.get_num_threads() == threads
    assert in_a_new_thread(torch.get_num_threads) == threads


def in_a_new_thread(work: object) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return found[0]


def test_no_more_blocks_are_taken_than_are_worked_on(threads: int) -> None:
    taken: list[int] = []

    def blocks() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    answers = map_blocks(lambda number: number, blocks())
    assert next(answers) == 0
    assert len(taken) <= 5
    answers.close()
    assert len(taken) <= 5
    assert torch.get_num_threads() == threads


def test_an_error_ends_it(threads: int) -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    answers = map_blocks(work, range(1000))
    with pytest.raises(ValueError, match="three"):
        list(answers)
    assert torch.get_num_threads() == threads


def test_the_number_of_lanes_does_not_change_a_map() -> None:
    """Classes one after the other, so that blocks and their pieces have means far from all others'; in float32."""
    torch.manual_seed(0)
    x = (torch.randn(40_000, 64) + torch.arange(40_000)[:, None] / 4000 * torch.randn(64)).half()
    before = torch.get_num_threads()
    maps = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        mapping = Whitening(32)
        mapping.fit(iter(x.split(5000)))
        maps.append(mapping.state())
    torch.set_num_threads(before)
    moments, covariance = Moments(keep=32), torch.cov(x.double().T)
    moments.add(x[:5000])
    assert moments.single is not None
    for state in maps:
        assert torch.allclose(state["mean"], x.double().mean(0), atol=1e-6)
        assert torch.allclose(state["eigenvalues"], torch.linalg.eigvalsh(covariance).flip(0), rtol=1e-5)
        assert torch.allclose(state["axes"], maps[0]["axes"], atol=1e-5)
