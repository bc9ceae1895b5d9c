"""Cells that run at once: a cell's lines stand together, each line of stderr bears its number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

CELL = """
import os, sys
from pathlib import Path
from rela_cli.launch.together import together
number, folder = int(sys.argv[1]), Path(sys.argv[2])
with together(folder, number):
    for line in range(50):
        print(f"{number} says {line}")
        os.write(2, f"warning {line}\\n".encode())
        if line == 25:
            (folder / f"half-{number}").touch()
            while len(list(folder.glob("half-*"))) < 2:
                pass
print(f"{number} is done")
"""


def test_lines_of_a_cell_stand_together(tmp_path: Path) -> None:
    """Two write at the same time, each with a break in the middle that waits for the other."""
    command = [sys.executable, "-c", CELL]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as error:
        options = {"cwd": ROOT, "stdout": out, "stderr": error}
        both = [subprocess.Popen([*command, str(n), str(tmp_path)], **options) for n in range(2)]  # type: ignore[call-overload]
        assert [process.wait(60) for process in both] == [0, 0]
    lines = [line for line in (tmp_path / "out").read_text().splitlines() if "says" in line]
    first = lines[0].split()[0]
    expected = [f"{n} says {line}" for n in (first, "1" if first == "0" else "0") for line in range(50)]
    assert lines == expected
    warnings = (tmp_path / "err").read_text().splitlines()
    assert sorted(warnings) == sorted(f"cell {n}: warning {line}" for n in (1, 2) for line in range(50))
