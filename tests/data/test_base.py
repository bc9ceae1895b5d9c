"""Parts of a dataset: limits, proportions of classes, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from rela_cli.data.base import stratified


@pytest.mark.parametrize("keep", [1, 2, 7, 50, 99, 100])
def test_a_part_keeps_each_class_in_its_proportion(keep: int) -> None:
    labels = np.random.RandomState(1).permutation(np.repeat([0, 1, 2, 3], [10, 20, 30, 40]))
    chosen = stratified(labels, 100, keep, seed=0)
    assert len(chosen) == len(set(chosen)) == keep
    assert list(chosen) == sorted(chosen)
    counts = np.bincount(labels[chosen], minlength=4)
    assert (np.abs(counts - keep * np.array([0.1, 0.2, 0.3, 0.4])) < 1).all()


def test_the_largest_remainders_get_what_is_left() -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 20, 30, 40])  # of 7 samples the shares are 0.7, 1.4, 2.1 and 2.8
    assert np.bincount(labels[stratified(labels, 100, 7, seed=0)]).tolist() == [1, 1, 2, 3]


def test_a_part_depends_on_its_seed_only() -> None:
    labels = np.arange(1000) % 10
    first = stratified(labels, 1000, 100, seed=0)
    np.random.seed(5)
    assert np.array_equal(first, stratified(labels, 1000, 100, seed=0))
    assert len(set(first) & set(stratified(labels, 1000, 100, seed=1))) < 40


def test_a_part_without_labels_is_uniform() -> None:
    chosen = np.concatenate([stratified(None, 1000, 100, seed) for seed in range(50)])
    assert abs(chosen.mean() - 499.5) < 5 * 289 / 5000**0.5
    assert len(set(stratified(None, 1000, 100, 0))) == 100


@pytest.mark.parametrize("keep", [None, 100, 5000])
def test_no_limit_keeps_everything_in_order(keep: int | None) -> None:
    assert np.array_equal(stratified(np.arange(100) % 3, 100, keep, 0), np.arange(100))
