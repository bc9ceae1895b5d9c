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


def map_blocks(work: Callable[[B], R], blocks: Iterable[B], workers: int = WORKERS) -> Iterator[R]:
    """Map `work` over blocks, up to `workers` at once, each on a share of torch's threads.

    Work that uses one thread (reading, rounding, writing) then no longer leaves the others idle. Results come in the
    order of the blocks, so a sum over them does not depend on speed; at most workers + 1 are in memory.

    Raises:
        Exception: the first that `work` raised; blocks not begun are left.
    """
    threads = torch.get_num_threads()
    workers = min(workers, threads)
    if workers < 2:
        yield from map(work, blocks)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield from in_order(pool, work, blocks, workers)
    finally:
        pool.shutdown()
        torch.set_num_threads(threads)  # what a lane sets for itself is what later threads would start with


def in_order(pool: ThreadPoolExecutor, work: Callable[[B], R], blocks: Iterable[B], workers: int) -> Iterator[R]:
    """The answers; `workers` blocks are in work while one answer is used."""
    begun: deque[Future[R]] = deque()
    for block in blocks:
        done = [begun.popleft().result()] if len(begun) == workers else []
        begun.append(pool.submit(work, block))
        yield from done
    while begun:
        yield begun.popleft().result()
