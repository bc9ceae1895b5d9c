"""Which images are looked at while a run trains."""

from __future__ import annotations

import pytest
import torch

from rela_cli.training.watch import evenly


@pytest.mark.parametrize(("count", "most"), [(3999, 2000), (50_000, 2000), (1437, 2000), (7, 3), (1, 5)])
def test_a_sample_reaches_from_the_first_image_to_the_last(count: int, most: int) -> None:
    rows = evenly(count, most)
    gaps = rows.diff()
    assert len(rows) == min(count, most)
    assert rows[0] == 0
    assert count - int(rows[-1]) <= -(-count // len(rows)), "the last gap is like the others"
    assert not len(gaps) or int(gaps.max() - gaps.min()) <= 1
    if count == 50_000:
        assert torch.equal(rows, torch.arange(50_000)[::25]), "as it was where the numbers divide"
