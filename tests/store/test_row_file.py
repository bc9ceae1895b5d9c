"""Rows on disk: the bytes that safetensors itself would write, and memory that does not grow with their number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.store.blocks import KeptWriter
from rela_cli.store.row_file import RowFile, RowFileWriter
from tests.promises.helpers import flip


def written(path: Path, blocks: list[Tensor], count: int) -> Path:
    with RowFileWriter(path, "features", count) as rows:
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
    rows = RowFile(written(tmp_path / "b", [x], 100), "features")
    assert (len(rows), rows.shape) == (100, (100, 5))
    assert torch.cat(list(rows.blocks(33))).equal(x)


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was to have 100 rows and got 90"):
        written(tmp_path / "b", [torch.zeros(90, 2)], 100)


# ------------------------------------------------------------------------------- rows that a later process goes on with

OF, HERE = {"block_size": 30}, {"device": "cpu", "threads": 1}


def begun(path: Path, blocks: list[Tensor], of: dict[str, int] = OF) -> tuple[int, float]:
    """Go on with a file of 100 rows; how many blocks were there, and the seconds of all."""
    with suppress(ValueError), KeptWriter(path, "features", 100, of, HERE) as rows:
        there = rows.blocks
        for block in blocks[there:]:
            rows.add(block)
    return there, rows.seconds


@pytest.mark.parametrize("large", [None, 10, 50, 95])
@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_it_goes_on_behind_the_last_block_with_the_same_bytes(tmp_path: Path, stopped: int, large: int | None) -> None:
    x = torch.randn(100, 5)
    if large:
        x[large, 2] = 7e4  # from here on all is fp32
    blocks = list(x.split(30))
    expected = written(tmp_path / "a", blocks, 100).read_bytes()
    _, before = begun(tmp_path / "b", blocks[:stopped])
    there, seconds = begun(tmp_path / "b", blocks)
    assert there == stopped
    assert (tmp_path / "b").read_bytes() == expected
    assert seconds > before if stopped < 4 else seconds == before, "what an earlier process spent is on the account"


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flipped(path: Path) -> None:
    flip(path, -10 * 60)  # the middle of three blocks of 30 rows of 10 bytes, from its first byte to the last


def journal_torn(path: Path) -> None:
    torn(path.with_name(".b.blocks"))
    torn(path.with_name(".b.blocks"))


def other_header(path: Path) -> None:
    flip(path, 20)


def journal_of_anything(path: Path) -> None:
    lines = path.with_name(".b.blocks").read_text().splitlines()
    path.with_name(".b.blocks").write_text("\n".join([lines[0], lines[1].replace('"F16"', "7"), *lines[2:]]))


@pytest.mark.parametrize(
    ("damage", "left"), [(torn, 2), (flipped, 1), (journal_torn, 2), (other_header, 0), (journal_of_anything, 0)]
)
def test_what_is_torn_or_flipped_is_made_again(
    tmp_path: Path, damage: Callable[[Path], None], left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = list(torch.randn(100, 5).split(30))
    begun(tmp_path / "b", blocks[:3])
    damage(tmp_path / "b")
    assert begun(tmp_path / "b", blocks)[0] == left
    assert (tmp_path / "b").read_bytes() == written(tmp_path / "a", blocks, 100).read_bytes()
    said = f"rela: b, begun before, is damaged at block {left + 1}; made again from there\n"
    assert capsys.readouterr().err == ("" if damage is journal_torn else said)


def test_blocks_of_another_size_are_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(100, 5)
    begun(tmp_path / "b", list(x.split(30))[:2])
    assert begun(tmp_path / "b", list(x.split(50)), {"block_size": 50})[0] == 0
    assert (tmp_path / "b").read_bytes() == written(tmp_path / "a", [x], 100).read_bytes()
    assert "was begun with count 100, block_size 30; it starts again with count 100, block_size 50" in (
        capsys.readouterr().err
    )


MEMORY = """
import sys
from pathlib import Path
import torch
from rela_cli.store.row_file import RowFile, RowFileWriter

folder, count = Path(sys.argv[1]), int(sys.argv[2])
with RowFileWriter(folder / "x", "features", count) as rows:
    for start in range(0, count, 1000):
        rows.add(torch.randn(min(1000, count - start), 256))
with RowFileWriter(folder / "y", "features", count) as rows:
    for block in RowFile(folder / "x", "features").blocks(1000):
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
