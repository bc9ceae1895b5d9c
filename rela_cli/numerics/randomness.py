"""Randomness as a function: one counter-based hash, the same integers on CPU and GPU.

A draw depends on (seed, stream, epoch, sample, view, which draw) and on nothing that happened before, so order,
subset and augmentation do not care about workers, ranks, batch borders or restarts.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from rela_cli.numerics.integer_hash import mix32

COUNTERS_AT_A_TIME = 1 << 17  # counters that are hashed at a time
MASK = 0xFFFFFFFF  # 32-bit words, held in int64: a product wraps there and its low word stays right


def stream_key(seed: int, *path: int | str) -> int:
    """A 63-bit key for one stream, such as `key(seed, "subset", epoch)`."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words with near-ideal avalanche (Wellons' triple32)."""
    word = word ^ (word >> 17)
    word = (word * 0xED5AD4BB) & MASK
    word = word ^ (word >> 11)
    word = (word * 0xAC4C1B51) & MASK
    word = word ^ (word >> 15)
    word = (word * 0x31848BAB) & MASK
    return word ^ (word >> 14)


def random_words(stream: int, counters: Tensor, draws: int) -> Tensor:
    """`draws` 32-bit words for each counter: (N,) int64 -> (N, draws) int64."""
    which = torch.arange(1, draws + 1, device=counters.device)
    start = mix((mix(counters & MASK) + (stream & MASK)) & MASK)
    # the key's two halves come in apart: counters of two streams may meet in one word, never in both
    return mix(mix((start[:, None] + 0x9E3779B9 * which) & MASK) ^ (stream >> 32))


def uniform(stream: int, counters: Tensor, draws: int) -> Tensor:
    """`draws` numbers in [0, 1) for each counter, 24 bits each: (N,) int64 -> (N, draws) float32."""
    return (random_words(stream, counters, draws) >> 8).to(torch.float32) * 2.0**-24


def permutation(stream: int, n: int) -> Tensor:
    """A permutation of 0..n-1, by sorting 62-bit random keys: (n,) int64 on the CPU."""
    return torch.argsort(torch.from_numpy(sort_keys(stream, n)), stable=True)


def first_of_permutation(stream: int, n: int, k: int) -> Tensor:
    """`permutation(stream, n)[:k]`, sorting little more than k keys: those below what k of n should come to."""
    keys = sort_keys(stream, n)
    share = k / n
    candidates = np.flatnonzero(keys < (share + 6 * math.sqrt(share / n) + 1 / n) * 2.0**62)
    if len(candidates) < k:  # a chance of one in 10^9
        candidates = np.arange(n)
    order = torch.argsort(torch.from_numpy(keys[candidates]), stable=True)[:k]
    return torch.from_numpy(candidates)[order]


def sort_keys(stream: int, n: int) -> np.ndarray:
    """62 bits of the two words of each counter 0..n-1: (n,) int64.

    What `words(stream, arange(n), 2)` has, in 32-bit arithmetic and blocks that stay in the processor's cache: twenty
    times faster.
    """
    keys = np.empty(n, dtype=np.int64)
    low, high = np.uint32(stream & MASK), np.uint32(stream >> 32)
    for start in range(0, n, COUNTERS_AT_A_TIME):
        counter = mix32(
            mix32(np.arange(start, min(start + COUNTERS_AT_A_TIME, n), dtype=np.int64).astype(np.uint32)) + low
        )
        one, two = (mix32(mix32(counter + np.uint32(0x9E3779B9 * draw & MASK)) ^ high) >> 1 for draw in (1, 2))
        keys[start : start + COUNTERS_AT_A_TIME] = (one.astype(np.int64) << 31) | two
    return keys


class torch_seed:  # noqa: N801 - a context manager, used like a function
    """Module initialisation under one stream; torch's own generator is put back afterwards."""

    def __init__(self, seed: int, *path: int | str) -> None:
        self.key = stream_key(seed, *path)

    def __enter__(self) -> None:
        self.state = torch.random.get_rng_state()
        torch.default_generator.manual_seed(self.key)

    def __exit__(self, *_: object) -> None:
        torch.random.set_rng_state(self.state)
