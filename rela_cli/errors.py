"""Errors that a user is meant to read: a message that names the way out, and the exit status it leads to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class RelaError(Exception):
    """Something failed in a way we can name. Shown without a traceback; `exit_code` becomes the exit status."""

    exit_code = 1
    of_all = False  # whether all ranks of a run fail with it together, so that one need speak


class ConfigError(RelaError):
    """The command line or the configuration cannot be meant: nothing has been started."""

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


def nearest(word: str, known: Iterable[str]) -> str:
    """A 'did you mean' tail for an error message, or the empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f", did you mean {close[0]}?" if close else ""
