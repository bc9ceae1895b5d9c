"""Map a function over the blocks of a stream, a few blocks at a time; the results come in the blocks' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

WORKERS = 4  # blocks at a time, at most: each needs room of its own
B = TypeVar("B")
R = TypeVar("R")


def map_blocks(work: Callable[[B], R], blocks: Iterable[B], lanes: int = WORKERS) -> Iterator[R]:
    """`work` of each block; torch's threads are dealt out over up to `lanes` blocks that are worked on side by side.

    All threads on one block wait for one whenever something is not a product: reading, rounding, writing. The answers
    come in order, so what is summed from them does not depend on who was quicker; lanes + 1 are there at a time.

    Raises:
        Exception: the first that `work` raised; blocks not begun are left.
    """
    threads = torch.get_num_threads()
    lanes = min(lanes, threads)
    if lanes < 2:
        yield from map(work, blocks)
        return
    pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,))
    try:
        yield from in_order(pool, work, blocks, lanes)
    finally:
        pool.shutdown()
        torch.set_num_threads(threads)  # what a lane sets for itself is what later threads would start with


def in_order(pool: ThreadPoolExecutor, work: Callable[[B], R], blocks: Iterable[B], lanes: int) -> Iterator[R]:
    """The answers; `lanes` blocks are in work while one answer is used."""
    begun: deque[Future[R]] = deque()
    for block in blocks:
        done = [begun.popleft().result()] if len(begun) == lanes else []
        begun.append(pool.submit(work, block))
        yield from done
    while begun:
        yield begun.popleft().result()
