"""What a signal does: a first one ends the work in good order, a second one the process. Needs no torch.

    while one run is made            stoppable   raised where it stands
      inside its training loop       deferred    kept until the step is over
    between two cells of a sweep     between     raised; Ctrl-C is Python's own
    in any other command             between     the same
    while a table's runs are made    collected   kept until no process that was just started can be lost

SIGTERM and SIGUSR1 end with 143, SIGINT with 130, SIGHUP (a terminal that was closed) with 129. Under nohup SIGHUP is
ignored, and stays so. What has to be waited for is said at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from rela_cli.distributed import ranks
from rela_cli.errors import Stopped

Handler = Callable[[int, FrameType | None], None]
TOLD_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # by a scheduler, some warn with the second; a terminal
CAUGHT = (signal.SIGINT, *TOLD_TO_STOP)


@contextmanager
def handled(signals: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """Inside, `handler` gets these signals. Not in a thread: whoever runs us there handles them in the main one."""
    try:
        before = {each: signal.signal(each, handler) for each in signals if not is_ignored(each)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def first_signal(signum: int, words: str = "") -> Stopped:
    """What a first signal means; from now on each of them ends the process at once."""
    for each in CAUGHT:
        if not is_ignored(each):
            signal.signal(each, signal.SIG_DFL)
    return stopped(signum, words)


def is_ignored(signum: int) -> bool:
    """Whether the work is to outlive its terminal: nohup."""
    return signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN


def heard(signum: int, awaited: str) -> None:
    """Say at once what a first signal waits for. Not by `print`, which the signal may have interrupted.

    With several ranks the process that has started them speaks, else rank 0.
    """
    if ranks.is_first() and ranks.MEETING not in os.environ:
        text = f"rela: {signal.Signals(signum).name}: {awaited}; a second signal ends it at once\n"
        with suppress(OSError):
            os.write(sys.stderr.fileno() if sys.stderr else 2, text.encode())


def let_go_of_terminal() -> None:
    """What is written to a terminal that was closed would be an error, in the middle of saving."""
    for number in (1, 2):
        try:
            gone = os.isatty(number) or os.write(number, b"") != 0
        except OSError:
            gone = True
        if gone:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def stopped(signum: int, words: str = "") -> Stopped:
    """The error with a signal's name and exit status."""
    if signum == signal.SIGHUP:
        let_go_of_terminal()
    name = signal.Signals(signum).name
    return Stopped(f"stopped by {name}{words}", signal.SIGTERM if signum == signal.SIGUSR1 else signum)


@contextmanager
def stoppable(standing: Callable[[], str] = lambda: "the last finished stage") -> Iterator[None]:
    """A first signal ends the run as `Stopped`, a second one ends the process at once.

    `standing` says from where the same command would go on.
    """

    def stop(signum: int, _: FrameType | None) -> None:
        if _deferred is not None:
            heard(signum, "the step is ended, then all is saved")
            _deferred.append(first_signal(signum, "; the same command goes on"))
            return
        raise first_signal(signum, f"; the same command goes on from {standing()}")

    with handled(CAUGHT, stop):
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

    Where cells are processes of their own, `tell` passes the signal on to them first, a Ctrl-C too.
    """

    def stop(signum: int, _: FrameType | None) -> None:
        if tell:
            heard(signum, "cells that run save and leave, within a minute")
            tell(signum)
        raise stopped(signum)

    with handled(CAUGHT if tell else TOLD_TO_STOP, stop):
        yield


@contextmanager
def collected(words: str = "; the same command makes what is still missing") -> Iterator[list[Stopped]]:
    """A list that a first signal is put into: raised at once, it might lose a process just started."""
    caught: list[Stopped] = []

    def keep(signum: int, _: FrameType | None) -> None:
        heard(signum, "what runs saves and leaves, within a minute")
        caught.append(first_signal(signum, words))

    with handled(CAUGHT, keep):
        yield caught
