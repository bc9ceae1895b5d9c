"""Files that are written whole or not at all, and what a killed process leaves of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rela_cli.store.locks import RunLock
from rela_cli.store.outputs import leftovers

KILLED_BY_SAFETENSORS = """
import os, signal, sys, threading, time
import numpy as np
from safetensors.numpy import save_file
def kill():
    while not any(name.startswith(".tmp") for name in os.listdir(sys.argv[1])):
        time.sleep(0.0001)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
while True:
    save_file({"x": np.zeros(20_000_000)}, sys.argv[1] + "/weights.safetensors")
"""


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """Ours, and the temporary file of safetensors, which a process that is killed while it saves really leaves."""
    folder = tmp_path / "runs" / "a-run"
    folder.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", KILLED_BY_SAFETENSORS, str(folder)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    theirs = [path for path in folder.iterdir() if path.name.startswith(".tmp")]
    assert len(theirs) == 1
    (folder / f".result.json.{os.getpid()}.tmp").touch()
    (folder / "manifest.json").write_text("{}")
    (folder / "notes.tmp").write_text("a user's own")
    assert {left.path.name for left in leftovers(tmp_path)} == {theirs[0].name, f".result.json.{os.getpid()}.tmp"}
    with RunLock(folder):
        kept = {path.name for path in folder.iterdir() if not path.name.startswith(".lock")}
    assert kept - {"weights.safetensors"} == {"manifest.json", "notes.tmp"}
