"""Randomness as a function: fixed integers, even spread, and no dependence on what stands beside a draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from rela_cli.numerics.randomness import (
    first_of_permutation,
    mix,
    permutation,
    random_words,
    sort_keys,
    stream_key,
    torch_seed,
    uniform,
)

N = 50_000
KEYS = [3943498252029117371, 2254893390724248556, 7561000660324546139]
MIXED = [0, 69681622, 4057983209, 310335631]
WORDS = [
    [1557983333, 3834388356, 2255897982],
    [3682836620, 3876005812, 116370248],
    [2012116938, 3589607322, 3826328421],
]
PERMUTATION = [7, 2, 1, 3, 9, 0, 4, 8, 5, 6]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.double().numpy(), b.double().numpy())[0, 1])


def test_the_integers_are_fixed() -> None:
    """Every run that was ever made depends on these; a change of one is a change of all."""
    assert [
        stream_key(0, "augment", 3, 1),
        stream_key(1, "subset", 0),
        stream_key(2**31 - 1, "init", "learner"),
    ] == KEYS
    assert mix(torch.tensor([0, 1, 2, 0xFFFFFFFF])).tolist() == MIXED
    assert random_words(stream_key(0, "augment", 3, 1), torch.tensor([0, 1, 49_999]), 3).tolist() == WORDS
    assert permutation(stream_key(0, "order", 0), 10).tolist() == PERMUTATION


def test_mix_is_wellons_triple32() -> None:
    def triple32(x: int) -> int:
        for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
            x ^= x >> shift
            x = x * factor & 0xFFFFFFFF
        return x ^ x >> 14

    numbers = [0, 1, 2**31, 2**32 - 1, *range(12345, 2**32, 2**27 + 1)]
    assert mix(torch.tensor(numbers)).tolist() == [triple32(n) for n in numbers]


def test_words_are_32_bits_and_uniforms_below_one() -> None:
    drawn = random_words(stream_key(7, "x"), torch.arange(N), 4)
    assert drawn.min() >= 0 and drawn.max() < 2**32
    u = uniform(stream_key(7, "x"), torch.arange(N), 4)
    assert u.dtype == torch.float32
    assert u.min() >= 0 and u.max() < 1


@pytest.mark.parametrize("path", [("augment", 0, 0), ("augment", 1, 0), ("subset", 0)])
def test_each_draw_is_uniform(path: tuple[str, int]) -> None:
    u = uniform(stream_key(0, *path), torch.arange(N), 18).double().numpy()
    assert np.abs(u.mean(0) - 0.5).max() < 5 / np.sqrt(12 * N)
    for column in u.T:
        assert stats.chisquare(np.bincount((column * 100).astype(int), minlength=100)).pvalue > 1e-5
        assert stats.kstest(column, "uniform").pvalue > 1e-5


def test_every_bit_is_fair() -> None:
    drawn = random_words(stream_key(3, "bits"), torch.arange(N), 2)
    bits = (drawn[..., None] >> torch.arange(32)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / np.sqrt(N)


def test_draws_of_one_sample_are_unrelated() -> None:
    u = uniform(stream_key(0, "augment", 0, 0), torch.arange(N), 18)
    for a, b in itertools.combinations(range(18), 2):
        assert abs(correlation(u[:, a], u[:, b])) < 5 / np.sqrt(N)


@pytest.mark.parametrize("step", [1, 2, 128, 4096])
def test_neighbouring_samples_are_unrelated(step: int) -> None:
    u = uniform(stream_key(0, "augment", 0, 0), torch.arange(N + step), 1)[:, 0]
    assert abs(correlation(u[:-step], u[step:])) < 5 / np.sqrt(N)


@pytest.mark.parametrize("other", [(0, "augment", 1, 0), (0, "augment", 0, 1), (1, "augment", 0, 0), (0, "subset", 0)])
def test_streams_are_unrelated(other: tuple[int, str]) -> None:
    a = uniform(stream_key(0, "augment", 0, 0), torch.arange(N), 2)
    b = uniform(stream_key(*other), torch.arange(N), 2)
    for i, j in itertools.product(range(2), repeat=2):
        assert abs(correlation(a[:, i], b[:, j])) < 5 / np.sqrt(N)
    assert not (a == b).all(1).any()


def test_no_stream_is_another_one_with_its_samples_renamed() -> None:
    """Two epochs must not share one table of augmentations in another order, whatever their keys are."""
    a, b, samples = 0x12345678_12345678, 0x12345678_12345678 ^ 1, torch.arange(1000)
    drawn = {tuple(row) for row in random_words(a, samples, 3).tolist()}
    assert len(drawn & {tuple(row) for row in random_words(b, samples, 3).tolist()}) == 0


def test_draws_do_not_depend_on_the_batch() -> None:
    stream, samples = stream_key(0, "augment", 2, 1), torch.tensor([5, 3, 99, 0, 7])
    together = uniform(stream, samples, 18)
    alone = torch.cat([uniform(stream, sample[None], 18) for sample in samples])
    assert torch.equal(together, alone)
    assert torch.equal(together, uniform(stream, torch.arange(100), 18)[samples])
    assert torch.equal(together[:, :5], uniform(stream, samples, 5)), "more draws must not change the first ones"


@pytest.mark.parametrize("n", [1, 2, 10, 1437, N])
def test_a_permutation_has_everything_once(n: int) -> None:
    order = permutation(stream_key(0, "order", n), n)
    assert torch.equal(order.sort().values, torch.arange(n))


def test_permutations_are_uniform() -> None:
    seen = [tuple(permutation(stream_key(0, "p", i), 4).tolist()) for i in range(4800)]
    counts = [seen.count(order) for order in itertools.permutations(range(4))]
    assert stats.chisquare(counts).pvalue > 1e-5
    position = torch.stack([permutation(stream_key(1, "p", i), 1000)[:1] for i in range(2000)]).double()
    assert stats.kstest(position[:, 0].numpy() / 1000, "uniform").pvalue > 1e-5


def test_seeded_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch_seed(0, "init"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    with pytest.raises(ZeroDivisionError), torch_seed(0, "init"):
        assert torch.equal(torch.rand(3), inside)
        1 / 0
    before = torch.random.get_rng_state()
    with torch_seed(1, "init"):
        assert not torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_keys_tell_their_paths_apart() -> None:
    paths = [(s, name, e, v) for s in range(10) for name in ("augment", "subset") for e in range(20) for v in range(2)]
    assert len({stream_key(*path) for path in paths}) == len(paths)
    assert (
        len({stream_key(0, "1", 2), stream_key(0, 1, 2), stream_key(0, "12"), stream_key(0, 12), stream_key(0, 1, "2")})
        == 5
    )


# ------------------------------------------------------------------------------------------ fast, and the same integers


@pytest.mark.parametrize("n", [1, 2, 1437, 300_000])
def test_the_fast_keys_are_the_words(n: int) -> None:
    for stream in KEYS:
        high, low = random_words(stream, torch.arange(n), 2).unbind(1)
        expected = (high >> 1 << 31) | (low >> 1)
        assert np.array_equal(sort_keys(stream, n), expected.numpy())
        assert torch.equal(permutation(stream, n), torch.argsort(expected, stable=True))


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (2, 1), (50, 1), (50, 49), (50, 50), (1000, 100), (300_000, 3), (300_000, 30_000)]
)
def test_the_first_of_a_permutation(n: int, k: int) -> None:
    for stream in KEYS:
        assert torch.equal(first_of_permutation(stream, n, k), permutation(stream, n)[:k])


def test_the_first_where_the_keys_are_unlike_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys large: nothing lies below the bound, and everything is sorted."""
    monkeypatch.setattr(
        "rela_cli.numerics.randomness.sort_keys", lambda stream, n: np.arange(n)[::-1].copy() + (1 << 61)
    )
    assert first_of_permutation(0, 1000, 2).tolist() == [999, 998]
