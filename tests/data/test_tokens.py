"""Where a view lies in the map of its image: cropped, mirrored, and where the prior has not looked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rela_cli.data.batches.boxes import box_parts, draw_boxes
from rela_cli.data.batches.tokens import CellTargets, TokenTargets, at_cells
from rela_cli.data.batches.views import Place
from tests.data.test_boxes import LIGHT

SIDE = 40  # pixels of the stored image


def ramp(size: int, covered: float, grid: int) -> TokenTargets:
    """A map whose two components are where the middle of each cell lies in the stored image: vertical, horizontal."""
    first = (SIDE - size * covered) / 2
    middle = first + (torch.arange(grid) + 0.5) * size * covered / grid
    maps = torch.stack(torch.meshgrid(middle, middle, indexing="ij"), dim=-1).flatten(0, 1)
    return TokenTargets(maps.expand(50, 1, -1, 2), SIDE, size, covered)


def one_by_one(place: Place, i: int, cells: int) -> Tensor:
    """Where the middles of the cells of a view of sample i lie in the stored image: (cells, cells, 2)."""
    (top, left), (height, width), mirrored = place[0][:, i].tolist(), place[1][:, i].tolist(), bool(place[2][i])
    found = torch.empty(cells, cells, 2)
    for row in range(cells):
        for column in range(cells):
            seen = cells - 1 - column if mirrored else column
            found[row, column, 0] = top + (row + 0.5) * height / cells
            found[row, column, 1] = left + (seen + 0.5) * width / cells
    return found


@pytest.mark.parametrize(("size", "covered", "grid"), [(40, 1.0, 10), (32, 1.0, 8), (40, 0.75, 6), (32, 1.25, 10)])
def test_a_cell_is_matched_to_what_lies_there(size: int, covered: float, grid: int) -> None:
    """Of a decoded image the prior has seen the middle, and of that its preprocessing has left a share."""
    rows = torch.arange(50)
    place = box_parts(draw_boxes(LIGHT, True, SIDE, rows, 1)[:, 0])
    assert 0 < int(place[2].sum()) < 50, "some are mirrored"
    (target,) = ramp(size, covered, grid).of_places(rows, [place])
    found, has_target = at_cells(target, (5, 5))
    length = size * covered
    edge, half = (SIDE - length) / 2, length / grid / 2
    for i in range(50):
        wanted = one_by_one(place, i, 5)
        inside = ((wanted >= edge) & (wanted <= SIDE - edge)).all(-1)
        assert torch.equal(has_target[i].bool(), inside)
        sampled = ((wanted >= edge + 2 * half) & (wanted <= SIDE - edge - 2 * half)).all(-1)  # else it is the border's
        assert (found[i].movedim(0, -1) - wanted)[sampled].abs().max() < 1e-3 if sampled.any() else True
    assert has_target.mean() > 0.5
    straight, _ = at_cells(target._replace(mirrored=torch.zeros(50, dtype=torch.bool)), (5, 5))
    assert (found - straight)[place[2]].abs().mean() > 2, "a mirror that is forgotten is seen"


def test_a_cached_view_is_matched_to_its_own_map() -> None:
    """Of several maps a sample's own, and where the preprocessing cuts it to the middle the rest has no target."""
    maps = torch.randn(6, 3, 16, 2)
    target, other = TokenTargets(maps, SIDE, 32).of_views(torch.tensor([4, 1]), torch.tensor([[2, 0], [1, 1]]))
    found, has_target = at_cells(target, (4, 4))
    torch.testing.assert_close(found[0].flatten(1).T, maps[4, 2])
    torch.testing.assert_close(at_cells(other, (4, 4))[0][1].flatten(1).T, maps[1, 1])
    assert has_target.all()
    (part,) = TokenTargets(maps, SIDE, 32, covered=0.5).of_views(torch.tensor([4]), torch.tensor([[2]]))
    found, has_target = at_cells(part, (8, 8))
    assert torch.equal(has_target[0].bool(), torch.nn.functional.pad(torch.ones(4, 4, dtype=torch.bool), (2, 2, 2, 2)))
    torch.testing.assert_close(found[0, :, 2:6, 2:6].flatten(1).T, maps[4, 2])


def test_large_cells_are_means() -> None:
    """A learner's cell that holds four of the prior's is matched to all four."""
    maps = torch.randn(1, 2, 4, 4)
    target = CellTargets(maps, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([True]))
    wanted = torch.nn.functional.avg_pool2d(maps, 2).flip(-1)
    torch.testing.assert_close(at_cells(target, (2, 2))[0], wanted)
