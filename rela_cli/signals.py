"""What a signal does: a first one ends the work in good order, a second one the process. Needs no torch.

while one run is made            stoppable    SIGTERM, SIGUSR1 (143), SIGINT (130): raised where it stands
  inside its training loop       deferred     kept until the step is over
between two cells of a sweep     between      SIGTERM (143): raised, as Python does it for Ctrl-C
while a table's runs are made    collected    SIGTERM (143), SIGINT (130): kept until no new process is lost by it
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from rela_cli.errors import Stopped

Handler = Callable[[int, FrameType | None], None]
STOP, TABLE_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), (signal.SIGTERM, signal.SIGINT)


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


def leave_next(signals: Sequence[signal.Signals]) -> None:
    """From now on these signals end the process at once."""
    for each in signals:
        signal.signal(each, signal.SIG_DFL)


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the run as `Stopped`, with 143; SIGINT with 130. A second one ends it at once."""

    def stop(signum: int, _: FrameType | None) -> None:
        leave_next(STOP)
        shown = signal.SIGTERM if signum == signal.SIGUSR1 else signum
        name = signal.Signals(signum).name
        stopped = Stopped(f"stopped by {name}; the same command goes on from the last finished stage", shown)
        if _deferred is None:
            raise stopped
        _deferred.append(stopped)

    with handled(STOP, stop):
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
def between() -> Iterator[None]:
    """SIGTERM between two cells ends the sweep as Ctrl-C does, with its summary."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM", signum)

    with handled([signal.SIGTERM], stop):
        yield


@contextmanager
def collected() -> Iterator[list[Stopped]]:
    """A list that a first SIGTERM or Ctrl-C is put into: raised at once, it might lose a process just started."""
    caught: list[Stopped] = []

    def keep(signum: int, _: FrameType | None) -> None:
        leave_next(TABLE_STOP)
        name = signal.Signals(signum).name
        caught.append(Stopped(f"stopped by {name}; the same command makes what is still missing", signum))

    with handled(TABLE_STOP, keep):
        yield caught
