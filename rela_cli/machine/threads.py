"""How many threads a run computes with on the CPU: all that there are, or one where they only wait for each other.

On a machine with other work each product of a small network waits for the slowest of its threads, and one alone may be
many times as fast. Another number gives other last bits, so a run that goes on keeps its number, and the number is said
and written down.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch

from rela_cli.config.runtime import Runtime
from rela_cli.distributed import ranks
from rela_cli.machine.processors import cores
from rela_cli.store.notices import warn
from rela_cli.terminal import plural

CLEARLY = 1.5  # times as fast as all threads that one has to be: nobody wants other bits for less
TRIAL_SECONDS = 1.5  # seconds of trials, by turns, after one of each to warm up; other work comes and goes


def choose(runtime: Runtime, device: torch.device, recorded: int | None, work: Callable[[], object]) -> int:
    """Set the number of threads for what is left of a run, by `recorded` of its beginning or by trying `work`."""
    allowed = torch.get_num_threads()
    if device.type != "cpu":
        return allowed
    number = (
        kept_threads(runtime, recorded, allowed) if recorded else allowed if is_said(runtime) else tried(work, allowed)
    )
    torch.set_num_threads(number)
    if number > len(cores()):
        there = plural(len(cores()), "core")
        say_from_first(f"{number} threads on {there} take turns: slower, with the same numbers as on {number} cores")
    return number


def is_said(runtime: Runtime) -> bool:
    """Whether the number is somebody's word: the user's, or that of whoever shares out this machine."""
    return bool(runtime.threads or os.environ.get("OMP_NUM_THREADS")) or ranks.world() > 1


def kept_threads(runtime: Runtime, recorded: int, allowed: int) -> int:
    """The number that a run was begun with, unless the user says another or this machine has not as many."""
    number = recorded if recorded <= allowed and not runtime.threads else allowed
    if number != recorded:
        begun = plural(recorded, "thread")
        say_from_first(f"begun with {begun}, it goes on with {number}: its weights may differ in their last bits")
    elif number != allowed:
        say_from_first(f"it goes on with {plural(number, 'thread')}, as it was begun")
    return number


def tried(work: Callable[[], object], allowed: int) -> int:
    """All threads, or one if that is clearly faster here and now."""
    if allowed < 2:
        return allowed
    slow, quick = by_turns(work, (allowed, 1))
    if slow < CLEARLY * quick:
        return allowed
    say_from_first(
        f"one thread is {slow / quick:.1f} times as fast as {allowed} here: other work takes the cores. It trains with "
        f"one; runtime.threads={allowed} says otherwise. Rounding differs, so the numbers will differ too"
    )
    return 1


def by_turns(work: Callable[[], object], numbers: Sequence[int]) -> list[float]:
    """Mean seconds of a call by each number of threads."""
    for number in numbers:
        time_trial(work, number)
    begun = time.perf_counter()
    found: list[list[float]] = []
    while not found or time.perf_counter() - begun < TRIAL_SECONDS:
        found.append([time_trial(work, number) for number in numbers])
    return [sum(column) / len(found) for column in zip(*found, strict=True)]


def time_trial(work: Callable[[], object], number: int) -> float:
    """Seconds of one call by so many threads."""
    torch.set_num_threads(number)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def say_from_first(message: str) -> None:
    """One line, from the first rank."""
    if ranks.is_first():
        warn(message)
