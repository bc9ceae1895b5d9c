"""Randomness as a function: one counter-based hash, the same integers on CPU and GPU.

A draw depends on (seed, stream, epoch, sample, view, which draw) and on nothing that happened before, so order,
subset and augmentation do not care about workers, ranks, batch borders or restarts.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

MASK = 0xFFFFFFFF  # 32-bit words, held in int64: a product wraps there and its low word stays right


def key(seed: int, *path: int | str) -> int:
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


def words(stream: int, counters: Tensor, draws: int) -> Tensor:
    """`draws` 32-bit words for each counter: (N,) int64 -> (N, draws) int64."""
    which = torch.arange(1, draws + 1, device=counters.device)
    start = mix((mix(counters & MASK) + (stream & MASK)) & MASK)
    # the key's two halves come in apart: counters of two streams may meet in one word, never in both
    return mix(mix((start[:, None] + 0x9E3779B9 * which) & MASK) ^ (stream >> 32))


def uniform(stream: int, counters: Tensor, draws: int) -> Tensor:
    """`draws` numbers in [0, 1) for each counter, 24 bits each: (N,) int64 -> (N, draws) float32."""
    return (words(stream, counters, draws) >> 8).to(torch.float32) * 2.0**-24


def permutation(stream: int, n: int) -> Tensor:
    """A permutation of 0..n-1, by sorting 62-bit random keys: (n,) int64 on the CPU."""
    high, low = words(stream, torch.arange(n), 2).unbind(1)
    return torch.argsort((high >> 1 << 31) | (low >> 1), stable=True)


class seeded:  # noqa: N801 - a context manager, used like a function
    """Module initialisation under one stream; torch's own generator is put back afterwards."""

    def __init__(self, seed: int, *path: int | str) -> None:
        self.key = key(seed, *path)

    def __enter__(self) -> None:
        self.state = torch.random.get_rng_state()
        torch.default_generator.manual_seed(self.key)

    def __exit__(self, *_: object) -> None:
        torch.random.set_rng_state(self.state)
