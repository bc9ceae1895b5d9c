"""Peak anonymous memory of one piece of work, in a process of its own.

Anonymous memory is what a process really holds; pages of mapped files can be dropped and do not count. Linux only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module

from rela_cli.machine.memory import STATUS

PAUSE = 0.005  # seconds between two looks


def peak_of(work: str, *arguments: str) -> float:
    """GB that the work `<module>:<function>` takes at its peak, imports aside."""
    command = [sys.executable, "-m", "rela_cli.commands.bench.memory", work, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1e9


def main(work: str, *arguments: str) -> None:
    """Print the bytes."""
    module, _, name = work.partition(":")
    function = getattr(import_module(f"rela_cli.commands.bench.{module}"), name)
    print(watched(lambda: function(*arguments)))


def watched(work: Callable[[], object]) -> int:
    """Bytes of anonymous memory at the peak of some work, over what was there before it."""
    before, seen, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(anonymous())
            time.sleep(PAUSE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(max(seen) - before, 0)


def anonymous() -> int:
    """Bytes of anonymous memory now."""
    found = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text())
    return int(found.group(1)) * 1024 if found else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
