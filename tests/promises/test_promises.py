"""docs/reliability.md itself: every fault has a row, and every row names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.promises.test_resume import TENSORS, TOP

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
TABLE = TEXT.split("| --- | --- | --- | --- | --- |\n")[1].split("\n\n")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()]


def place(name: str) -> Path:
    """tests/promises/, unless another place is named."""
    return ROOT / name if "/" in name else ROOT / "tests" / "promises" / name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1][:30]}")
def test_a_row_names_tests_that_are_there(row: list[str]) -> None:
    _, fault, promise, tests, count = row
    assert fault and promise
    for name in tests.split(", "):
        assert re.search(r"^def test_", place(name).read_text(), flags=re.MULTILINE), name
    assert int(re.match(r"[\d,]+", count)[0].replace(",", "")) > 0  # type: ignore[index]


def test_every_fault_has_its_row() -> None:
    assert {row[0] for row in ROWS} == {"", *map(str, range(1, 20))}


def test_row_11_counts_what_is_dropped() -> None:
    assert next(row[4] for row in ROWS if row[0] == "11") == str(len([*TOP, *TENSORS]))


def test_every_file_here_stands_in_the_table() -> None:
    """But those that are about something else: this one, and the commands that show and clean."""
    here = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    named = {name for row in ROWS for name in row[3].split(", ")}
    assert here - named == {"test_promises.py", "test_housekeeping.py"}
