"""Rows on disk: the bytes that safetensors itself would write, and memory that does not grow with their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.rows import Rows, RowWriter


def written(path: Path, blocks: list[Tensor], count: int) -> Path:
    with RowWriter(path, "features", count) as rows:
        for block in blocks:
            rows.add(block)
    return path


@pytest.mark.parametrize("block", [1, 7, 300, 1000])
def test_the_bytes_are_those_of_save_file(tmp_path: Path, block: int) -> None:
    x = torch.randn(1000, 37)
    save_file({"features": x.half()}, tmp_path / "a")
    assert written(tmp_path / "b", list(x.split(block)), 1000).read_bytes() == (tmp_path / "a").read_bytes()


def test_values_beyond_fp16_make_it_fp32(tmp_path: Path) -> None:
    x = torch.randn(100, 5)
    x[70, 2] = 7e4
    rows = load_file(written(tmp_path / "b", list(x.split(30)), 100))["features"]
    assert rows.dtype == torch.float32 and rows[60:].equal(x[60:])
    assert rows[:60].equal(x[:60].half().float())  # they were written before it was known


def test_what_is_fp16_already_stays_so(tmp_path: Path) -> None:
    x = torch.full((10, 5), 65_000.0).half()
    rows = load_file(written(tmp_path / "b", [x], 10))["features"]
    assert rows.dtype == torch.float16 and rows.equal(x)


def test_blocks_come_back(tmp_path: Path) -> None:
    x = torch.randn(100, 5).half()
    rows = Rows(written(tmp_path / "b", [x], 100), "features")
    assert (len(rows), rows.shape) == (100, (100, 5))
    assert torch.cat(list(rows.blocks(33))).equal(x)


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was to have 100 rows and got 90"):
        written(tmp_path / "b", [torch.zeros(90, 2)], 100)


MEMORY = """
import sys
from pathlib import Path
import torch
from rela_cli.rows import Rows, RowWriter

folder, count = Path(sys.argv[1]), int(sys.argv[2])
with RowWriter(folder / "x", "features", count) as rows:
    for start in range(0, count, 1000):
        rows.add(torch.randn(min(1000, count - start), 256))
with RowWriter(folder / "y", "features", count) as rows:
    for block in Rows(folder / "x", "features").blocks(1000):
        rows.add(block.float())
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_memory_is_flat(tmp_path: Path) -> None:
    """Fifty times the rows, 50 MB more of each file: less than 8 MB more of memory."""
    used = []
    for count in (2_000, 100_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path), str(count)], capture_output=True, text=True, check=True
        )
        used.append(int(done.stdout))
    assert used[1] - used[0] < 8_000  # kB
