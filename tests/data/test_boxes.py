"""Light views that a prior looks at once: their boxes as data, and the very view of a box."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as tv

from rela_cli.config.schema import View
from rela_cli.data.batches.boxes import CachedViews, box_parts, cut, draw_boxes
from rela_cli.data.batches.views import Augment, Views
from tests.factories import pixels

LIGHT = View(crop_scale=(0.3, 1.0), jitter_p=0.0, gray_p=0.0)
ROWS = torch.arange(200)


def test_boxes_lie_in_the_image_and_half_are_mirrored() -> None:
    boxes = draw_boxes(LIGHT, True, 12, ROWS, 4)
    start, side, mirrored = box_parts(boxes.flatten(0, 1))
    assert boxes.shape == (200, 4, 5) and boxes.dtype == torch.int16
    assert (start >= 0).all() and (side >= 1).all() and (start + side <= 12).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    assert not draw_boxes(LIGHT, False, 12, ROWS, 4)[..., 4].any()
    share = side.prod(0) / 144
    assert 0.25 < share.min() < 0.4 and share.max() > 0.9


def test_boxes_of_a_sample_depend_on_nothing_else() -> None:
    """More views or other samples beside them change nothing; views and samples differ."""
    boxes = draw_boxes(LIGHT, True, 12, ROWS, 4)
    assert torch.equal(draw_boxes(LIGHT, True, 12, torch.tensor([7, 3]), 2), boxes[[7, 3], :2])
    assert not torch.equal(boxes[:, 0], boxes[:, 1])
    assert len({tuple(box.flatten().tolist()) for box in boxes}) == 200


def test_a_cut_view_is_torchvisions_crop_resized_and_mirrored() -> None:
    images = pixels(40, 12)
    boxes = draw_boxes(LIGHT, True, 12, torch.arange(40), 1)[:, 0]
    for image, box, found in zip(images, boxes.tolist(), cut(images, boxes, 9), strict=True):
        top, left, height, width, mirrored = box
        wanted = tv.resized_crop(image.float() / 255, top, left, height, width, [9, 9], antialias=True)
        wanted = wanted.flip(-1) if mirrored else wanted
        assert found.dtype == torch.uint8
        assert (found.float() - (wanted * 255).clamp(0, 255)).abs().max() <= 0.51


def test_the_learner_is_shown_the_view_of_the_box() -> None:
    """Normalised, and not rounded to 8 bits; all else that a view draws stays as it was."""
    images, rows = pixels(16, 12), torch.arange(16)
    mean, std = torch.full((3,), 0.4), torch.full((3,), 0.3)
    kinds = [Augment(LIGHT, 12, mean, std, seed=5, number=i, flip=True) for i in range(2)]
    cached = CachedViews(draw_boxes(LIGHT, True, 12, rows, 3), torch.zeros(16, 3, 2), seed=5)
    shown = Views(kinds, 16)(images, rows, 4, cached.places(rows, 4, 2))
    for view, which in zip(shown, cached.chosen(rows, 4, 2), strict=True):
        wanted = cut(images, cached.boxes[rows, which], 12).float() / 255
        assert ((view * 0.3 + 0.4) - wanted).abs().max() < 0.51 / 255
    assert not torch.equal(shown[0], Views(kinds, 16)(images, rows, 4)[0])


def test_which_view_is_shown_when() -> None:
    """All of them in turn, evenly; two views of an image differ; targets are those of the boxes."""
    boxes = draw_boxes(LIGHT, True, 12, ROWS, 4)
    targets = torch.randn(200, 4, 3).half()
    cached = CachedViews(boxes, targets, seed=1)
    chosen = torch.stack([cached.chosen(ROWS, epoch, 2) for epoch in range(20)])
    assert (chosen[:, 0] != chosen[:, 1]).all()
    assert (chosen.flatten().bincount(minlength=4) / chosen.numel() - 0.25).abs().max() < 0.02
    rows = torch.tensor([9, 0, 33])
    found, places = cached.targets_of(rows, 3, 2), cached.places(rows, 3, 2)
    for target, (start, _, _), which in zip(found, places, cached.chosen(rows, 3, 2), strict=True):
        assert torch.equal(target, targets[rows, which].float())
        assert torch.equal(start.T, boxes[rows, which][:, :2].float())
    zero = CachedViews(boxes, targets, seed=0).chosen(ROWS, 0, 1)[0].double()  # says nothing of how the view is cut
    assert torch.corrcoef(torch.stack((zero, boxes[:, 0, 2].double())))[0, 1].abs() < 0.2
    other = CachedViews(boxes, targets, seed=2).chosen(ROWS, 0, 2)
    assert not torch.equal(other, cached.chosen(ROWS, 0, 2))
