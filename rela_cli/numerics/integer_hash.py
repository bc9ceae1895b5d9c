"""The hash under all randomness (randomness.py), in numpy, for what does without torch."""

from __future__ import annotations

import numpy as np


def mix32(word: np.ndarray) -> np.ndarray:
    """A bijection of 32-bit words with near-ideal avalanche (Wellons' triple32): (N,) uint32."""
    word = word ^ (word >> 17)
    word *= np.uint32(0xED5AD4BB)
    word ^= word >> 11
    word *= np.uint32(0xAC4C1B51)
    word ^= word >> 15
    word *= np.uint32(0x31848BAB)
    return word ^ (word >> 14)
