"""The dynamic subset: its size, what it is a function of, and that over the epochs everything is seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from scipy import stats

from rela_cli.config.lengths import lengths
from rela_cli.data.batches.subset import batches, epoch_indices
from tests.conftest import ROOT
from tests.factories import config


@pytest.mark.parametrize(
    ("budget", "samples", "size"),
    [
        (0.29, 50_000, 14_500),
        (0.57, 50_000, 28_500),
        (0.07, 100, 7),
        (1.0, 1437, 1437),
        (0.5, 1437, 718),
        (0.999, 1000, 999),
        (0.1, 1437, 143),
        (1 / 3, 99, 33),
        (1 / 3, 98, 32),
    ],
)
def test_size(budget: float, samples: int, size: int) -> None:
    """int(0.29 * 50000) is 14499; the floor has to survive binary fractions, and not round up a real one."""
    found = lengths(config(f"budget={budget}", "batch_size=2"), samples)
    assert found.subset_size == size
    assert found.steps_per_epoch == size // 2
    assert int(0.29 * 50_000) == 14_499


def test_the_last_partial_batch_is_dropped() -> None:
    found = lengths(config("budget=0.5", "batch_size=64", "epochs=3"), 1437)
    assert (found.steps_per_epoch, found.total_steps, found.samples_seen) == (11, 33, 33 * 64)


def test_an_epoch_goes_on_after_the_steps_that_are_taken() -> None:
    found = lengths(config("budget=0.5", "batch_size=16"), 200)
    every = list(batches(0, 3, found, 16))
    assert torch.equal(torch.cat(every), epoch_indices(0, 3, 200, 100)[:96])
    for taken in (0, 2, 6):
        left = list(batches(0, 3, found, 16, taken))
        assert len(left) == 6 - taken and all(torch.equal(a, b) for a, b in zip(left, every[taken:], strict=True))


def test_same_for_the_same_seed_and_epoch_only() -> None:
    first = epoch_indices(0, 0, 1000, 300)
    assert torch.equal(first, epoch_indices(0, 0, 1000, 300))
    for other in (epoch_indices(0, 1, 1000, 300), epoch_indices(1, 0, 1000, 300)):
        shared = len(set(first.tolist()) & set(other.tolist()))
        assert 60 < shared < 120, "two independent draws of 30 % share 9 % of the samples: 90 of 1000"


def test_no_sample_twice_and_none_from_outside() -> None:
    for epoch in range(20):
        chosen = epoch_indices(3, epoch, 500, 333)
        assert chosen.shape == (333,)
        assert len(chosen.unique()) == 333
        assert chosen.min() >= 0 and chosen.max() < 500


def test_over_the_epochs_everything_is_seen_about_equally() -> None:
    counts = torch.zeros(400)
    for epoch in range(400):
        counts[epoch_indices(0, epoch, 400, 80)] += 1
    assert counts.sum() == 400 * 80
    # 400 draws of 20 %: mean 80, variance 64 a sample; the sum is fixed, so 399 degrees of freedom
    spread = float(((counts - 80) ** 2 / 64).sum())
    assert 1e-5 < stats.chi2.cdf(spread, 399) < 1 - 1e-5
    assert counts.min() > 0


def test_order_is_uniform_and_changes() -> None:
    first, second = epoch_indices(0, 0, 2000, 2000), epoch_indices(0, 1, 2000, 2000)
    index = torch.arange(2000).double()
    for order in (first, second):
        assert abs(float(torch.corrcoef(torch.stack((order.double(), index)))[0, 1])) < 5 / 2000**0.5
    assert abs(float(torch.corrcoef(torch.stack((first, second)).double())[0, 1])) < 5 / 2000**0.5
    assert torch.equal(first.sort().values, torch.arange(2000))


def test_a_larger_budget_keeps_the_smaller_ones_samples_in_their_order() -> None:
    small, large = epoch_indices(0, 4, 1000, 100), epoch_indices(0, 4, 1000, 500)
    assert set(small.tolist()) < set(large.tolist())
    both = large[torch.isin(large, small)]
    assert torch.equal(both, small)


def test_global_generators_do_not_matter() -> None:
    expected = epoch_indices(0, 2, 1000, 100)
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.random.get_rng_state()
    assert torch.equal(epoch_indices(0, 2, 1000, 100), expected)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_in_another_process_with_other_threads() -> None:
    code = "from rela_cli.data.batches.subset import epoch_indices; print(epoch_indices(5, 7, 5000, 2500).tolist())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(epoch_indices(5, 7, 5000, 2500).tolist())
    assert epoch_indices(5, 7, 5000, 2500)[:4].tolist() == [89, 603, 594, 460]
