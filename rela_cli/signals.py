"""What a signal does: a first one ends the work in good order, a second one the process. Needs no torch.

    while one run is made            stoppable   raised where it stands
      inside its training loop       deferred    kept until the step is over
    between two cells of a sweep     between     raised; Ctrl-C is Python's own
    while a table's runs are made    collected   kept until no process that was just started can be lost

SIGTERM and SIGUSR1 end with 143, SIGINT with 130.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from rela_cli.errors import Stopped

Handler = Callable[[int, FrameType | None], None]
TOLD_TO_STOP = (signal.SIGTERM, signal.SIGUSR1)  # by a scheduler, some of which warn with the second
ALL = (signal.SIGINT, *TOLD_TO_STOP)


@contextmanager
def handled(signals: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """Inside, `handler` gets these signals. Not in a thread: whoever runs us there handles them in the main one."""
    try:
        before = {each: signal.signal(each, handler) for each in signals}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def first(signum: int, words: str = "") -> Stopped:
    """What a first signal means; from now on each of them ends the process at once."""
    for each in ALL:
        signal.signal(each, signal.SIG_DFL)
    return stopped(signum, words)


def stopped(signum: int, words: str = "") -> Stopped:
    """The error with a signal's name and exit status."""
    name = signal.Signals(signum).name
    return Stopped(f"stopped by {name}{words}", signal.SIGTERM if signum == signal.SIGUSR1 else signum)


@contextmanager
def stoppable() -> Iterator[None]:
    """A first signal ends the run as `Stopped`, a second one ends the process at once."""

    def stop(signum: int, _: FrameType | None) -> None:
        error = first(signum, "; the same command goes on from the last finished stage")
        if _deferred is None:
            raise error
        _deferred.append(error)

    with handled(ALL, stop):
        yield


_deferred: list[Stopped] | None = None  # signals that wait for the end of a step; None: they do not wait


@contextmanager
def deferred() -> Iterator[list[Stopped]]:
    """Inside, a first signal interrupts nothing: it comes up in this list, to be raised when it suits, or at the end.

    A second one ends the process at once, here as everywhere.
    """
    global _deferred
    pending: list[Stopped] = []
    _deferred = pending
    try:
        yield pending
    finally:
        _deferred = None
    if pending:
        raise pending[0]


@contextmanager
def between(tell: Callable[[int], object] | None = None) -> Iterator[None]:
    """SIGTERM or SIGUSR1 between two cells ends the sweep as Ctrl-C does, with its summary.

    Where cells are processes of their own, `tell` passes the signal on to them first.
    """

    def stop(signum: int, _: FrameType | None) -> None:
        if tell:
            tell(signum)
        raise stopped(signum)

    with handled(TOLD_TO_STOP, stop):
        yield


@contextmanager
def collected(words: str = "; the same command makes what is still missing") -> Iterator[list[Stopped]]:
    """A list that a first signal is put into: raised at once, it might lose a process just started."""
    caught: list[Stopped] = []

    def keep(signum: int, _: FrameType | None) -> None:
        caught.append(first(signum, words))

    with handled(ALL, keep):
        yield caught
