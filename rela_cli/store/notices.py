"""One line on stderr for what would otherwise be silent."""

from __future__ import annotations

import sys
from functools import cache

from rela_cli.store.secrets import redact
from rela_cli.terminal import indented


def warn(message: str) -> None:
    """One line on stderr; what a message of several lines has more is indented below it."""
    print(f"rela: {indented(redact(message))}", file=sys.stderr, flush=True)


@cache
def warn_once(message: str) -> None:
    """Log a message, but each message only once a process."""
    warn(message)
