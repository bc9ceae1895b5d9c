"""Which images are looked at while a run trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rela_cli.machine import memory
from rela_cli.training import watch
from rela_cli.training.watch import evenly
from tests.factories import pixels, stats_of


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


def test_memory_is_given_back_before_a_glance_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what steps have freed and what the glance takes are there at the same time."""
    done: list[str] = []
    look = watch.representations

    def looked(*of: Any) -> torch.Tensor:
        done.append("looked")
        return look(*of)

    monkeypatch.setattr(memory, "give_back", lambda: done.append("given back"))
    monkeypatch.setattr(watch, "representations", looked)
    images, backbone = pixels(12, 8), nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    assert set(watch.representation_facts(backbone, images, None, stats_of(images), 4)) == {
        "effective_rank",
        "deviation",
    }
    assert done == ["given back", "looked", "given back"]
