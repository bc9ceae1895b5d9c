"""Errors that a user is meant to read: a message that names the way out, and the exit status it leads to."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from typing import Any

OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory", "Unable to allocate")
SMALLER = "ways out: a smaller batch_size= or runtime.block_size=, dataset.on_disk=true, fewer processes side by side"
FEWER = "ways out: runtime.threads=1, fewer processes side by side"
MAKERS, FULL = ("CUDA", "CUBLAS", "HIP"), ("out of memory", "ALLOC_FAILED")  # how libraries say that a GPU is full


class RelaError(Exception):
    """Something failed in a way we can name. Shown without a traceback; `exit_code` becomes the exit status."""

    exit_code = 1
    of_all = False  # whether all ranks of a run fail with it together, so that one need speak


class ConfigError(RelaError):
    """The command line or the configuration is wrong; nothing has been started."""

    exit_code = 2
    of_all = True


class MissingError(RelaError):
    """Data or weights are not where they should be."""

    exit_code = 3


class DiskError(RelaError):
    """The disk is full, or may not be written to; nothing half-written is left behind."""


class NonFiniteError(RelaError):
    """Training produced NaN or Inf; the update was not applied. `facts` say where, for the manifest."""

    exit_code = 4
    of_all = True

    def __init__(self, message: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = facts or {}


class CollapseError(RelaError):
    """All images look alike to the learner, and the user asked to stop then."""

    exit_code = 4
    of_all = True


class Stopped(KeyboardInterrupt):
    """A signal ended the run; 128 + its number is the exit status. No `except Exception` may take it for a failure."""

    of_all = True

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def explained(error: BaseException) -> str | None:
    """In words, what the machine has run out of; None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        first = (text.strip().splitlines() or ["no more memory"])[0]
        return f"out of memory: {first}\n{SMALLER}"
    if "can't start new thread" in text or (isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN):
        return f"no more threads or processes can be started ({text}); `ulimit -u` or a container limits them\n{FEWER}"
    return None


def is_full(error: BaseException | str) -> bool:
    """Whether this says that a GPU has no memory left."""
    text = str(error)
    return any(maker in text for maker in MAKERS) and any(words in text for words in FULL)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or what kind of error it is where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def has_folder() -> bool:
    """Whether the working directory is there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A 'did you mean' tail for an error message, or the empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f", did you mean {close[0]}?" if close else ""
