"""What torchrun starts as `python -m tests.promises.as_rank WORDS`: `rela WORDS`, forked from the server of `warm`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests import warm


def main() -> int:
    """Its own process ends as the forked one does, and hands on torchrun's signal."""
    process = warm.start(Path.cwd(), *sys.argv[1:], env=os.environ)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    print(*process.communicate(), flush=True)
    return abs(process.wait())


if __name__ == "__main__":
    sys.exit(main())
