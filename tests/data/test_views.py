"""Views against torchvision, operation by operation, and as a function of (seed, epoch, view, sample) only."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as F

from rela_cli.config.schema import View
from rela_cli.data.batches import views
from rela_cli.data.batches.views import Augment
from tests.factories import pixels

MEAN, STD = torch.zeros(3), torch.ones(3)
STILL = View(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_p=0.0, jitter=(0.0, 0.0, 0.0, 0.0), jitter_p=0.0, gray_p=0.0
)
RICH = View(blur_p=0.5, solarize_p=0.3)
CPU = torch.device("cpu")
CONSTANTS = views.Constants.on(CPU)
CLOSE = 2e-6  # float32, a few roundings at values up to 1


def floats(n: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    return pixels(n, size, seed).float() / 255


def full(n: int, value: float) -> Tensor:
    return torch.full((n,), float(value))


def augment(view: View, size: int = 16, seed: int = 0, number: int = 0, flip: bool = True) -> Augment:
    return Augment(view, size, MEAN, STD, seed, number, flip)


def limits(size: int) -> Tensor:
    return torch.full((2, 1, 1), float(size))


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------ one operation at a time

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2
ADJUST = {BRIGHTNESS: F.adjust_brightness, CONTRAST: F.adjust_contrast, SATURATION: F.adjust_saturation}


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.7, 1.0, 1.3, 1.8])
@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
def test_brightness_contrast_saturation(operation: int, factor: float) -> None:
    x = floats()
    rest = full(6, (1 - factor) * (operation != BRIGHTNESS))
    ours = views.blend(x, full(6, factor), rest, full(6, operation) == CONTRAST, CONSTANTS)
    assert gap(ours, torch.stack([ADJUST[operation](image, factor) for image in x])) < CLOSE


@pytest.mark.parametrize("shift", [-0.5, -0.2, -0.01, 0.0, 0.1, 1 / 3, 0.5])
def test_hue(shift: float) -> None:
    x = floats()
    x[0] = x[0, :1]  # gray
    x[1, :, :4] = torch.eye(3).repeat(1, 16)[:, :16, None].transpose(1, 2)  # pure colours
    ours = views.shift_hue(x, full(6, shift), CONSTANTS)
    assert gap(ours, torch.stack([F.adjust_hue(image, shift) for image in x])) < 1e-5, (
        "hue is a quotient of differences"
    )


def test_modulo_six_is_torchs_remainder() -> None:
    x = torch.cat((torch.linspace(-5.999, 11.999, 100_001), torch.tensor([-1e-9, 0.0, 5.9999995, 6.0, 6.0000005])))
    assert torch.equal(views.modulo_six(x), torch.remainder(x, 6))


def test_grayscale() -> None:
    x = floats()
    ours = augment(replace(STILL, gray_p=1.0))(pixels(6, 16), torch.arange(6), 0)
    assert gap(ours, F.rgb_to_grayscale(x, num_output_channels=3)) < CLOSE


BOXES = [(0, 0, 16, 16), (3, 5, 8, 6), (10, 0, 6, 16), (15, 15, 1, 1), (2, 1, 13, 11)]


@pytest.mark.parametrize("size", [4, 7, 16, 24, 40])
@pytest.mark.parametrize("flipped", [False, True])
def test_crop_and_resize_up_and_down(size: int, flipped: bool) -> None:
    """Antialiased where it shrinks, for each axis by itself."""
    x = floats(len(BOXES))
    top, left, height, width = torch.tensor(BOXES, dtype=torch.float32).unbind(1)
    start, side = torch.stack((top, left)), torch.stack((height, width))
    grid, flip = views.ResampleGrid.of(16, size, CPU), torch.full((len(BOXES),), flipped)
    ours = views.crop_resize(x, start, side, [grid], flip)
    assert torch.equal(ours, views.crop_resize(x, start, side, [grid, grid], flip)), "sides apart, as they are unequal"
    theirs = torch.stack(
        [F.resized_crop(image, *box, [size, size], antialias=True) for image, box in zip(x, BOXES, strict=True)]
    )
    assert gap(ours, F.horizontal_flip(theirs) if flipped else theirs) < 1e-5, "the weights are sums of up to 16 terms"


def test_the_whole_image_at_its_own_size_comes_back() -> None:
    images = pixels(4, 16)
    assert gap(augment(STILL)(images, torch.arange(4), 0), images.float() / 255) == 0


def test_flip() -> None:
    images = pixels(200, 8)
    x = images.float() / 255
    ours = augment(replace(STILL, flip_p=0.5), 8)(images, torch.arange(200), 0)
    same = (ours == x).flatten(1).all(1)
    assert torch.equal(ours[~same], x[~same].flip(-1))
    assert 70 < int(same.sum()) < 130
    assert gap(augment(replace(STILL, flip_p=1.0), 8)(images, torch.arange(200), 0), x.flip(-1)) == 0


@pytest.mark.parametrize("flip_p", [0.5, 1.0])
def test_a_dataset_that_must_not_be_mirrored_never_is(flip_p: float) -> None:
    images = pixels(200, 8)
    ours = augment(replace(STILL, flip_p=flip_p), 8, flip=False)(images, torch.arange(200), 0)
    assert torch.equal(ours, images.float() / 255)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur(size: int, sigma: float) -> None:
    x = floats(size=size)
    kernel = 2 * max(1, round(0.05 * size)) + 1
    ours = views.gaussian_blur(x, full(6, sigma), torch.tensor([True] * 5 + [False]))
    assert gap(ours[:5], F.gaussian_blur(x[:5], [kernel, kernel], [sigma, sigma])) < CLOSE
    assert torch.equal(ours[5], x[5])


def test_solarize() -> None:
    images = pixels(6, 16)
    ours = augment(replace(STILL, solarize_p=1.0))(images, torch.arange(6), 0)
    theirs = F.solarize(images, threshold=128).float() / 255
    assert gap(ours, theirs) < CLOSE


def test_normalisation_comes_last() -> None:
    images, mean, std = pixels(4, 16), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    plain, scaled = (Augment(RICH, 16, m, s, 0, 0, True) for m, s in ((MEAN, STD), (mean, std)))
    expected = F.normalize(plain(images, torch.arange(4), 0), mean.tolist(), std.tolist())
    assert gap(scaled(images, torch.arange(4), 0), expected) < 1e-5


# ---------------------------------------------------------------------------------------------------- colour jitter


def test_jitter_in_all_24_orders_against_a_plain_loop() -> None:
    """Hue before the `position`-th of the other three, each in every sample's own order."""
    x, generator = floats(24), torch.Generator().manual_seed(1)
    factors = 0.2 + 1.6 * torch.rand(24, 3, generator=generator)
    shift = 0.4 * torch.rand(24, generator=generator) - 0.2
    orders = [(order, position) for order in itertools.permutations(range(3)) for position in range(4)]
    ours = views.jitter(
        x, factors, torch.tensor([o for o, _ in orders]), shift, torch.tensor([float(p) for _, p in orders]), CONSTANTS
    )
    for i, (order, position) in enumerate(orders):
        image = x[i]
        for operation in [*order[:position], "hue", *order[position:]]:
            if operation == "hue":
                image = F.adjust_hue(image, float(shift[i]))
            else:
                image = ADJUST[operation](image, float(factors[i, operation]))
        assert gap(ours[i], image) < 2e-5, (order, position)


def test_every_order_is_drawn_and_factors_fill_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(views, "jitter", lambda x, *drawn, **named: (seen.append((*drawn, *named.values())), x)[1])
    n = 12_000
    augment(View(jitter=(0.4, 0.6, 1.5, 0.1), jitter_p=0.8), 4)(pixels(1, 4).expand(n, -1, -1, -1), torch.arange(n), 0)
    factors, order, shift, position, _ = seen[0]
    applied = (factors != 1).any(1)
    assert abs(float(applied.float().mean()) - 0.8) < 5 * (0.16 / n) ** 0.5
    assert torch.equal(shift != 0, applied)
    for column, (low, high) in zip(factors[applied].T, [(0.6, 1.4), (0.4, 1.6), (0.0, 2.5)], strict=True):
        assert stats.kstest(column.numpy(), "uniform", (low, high - low)).pvalue > 1e-5
    assert stats.kstest(shift[applied].numpy(), "uniform", (-0.1, 0.2)).pvalue > 1e-5
    codes = (order * torch.tensor([100, 10, 1])).sum(1) * 10 + position.long()
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-5


def test_whole_colour_jitter_has_the_moments_of_torchvisions() -> None:
    n, view = 1500, replace(STILL, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=1.0)
    image = pixels(1, 8)
    ours = augment(view, 8)(image.expand(n, -1, -1, -1), torch.arange(n), 0)
    torch.manual_seed(0)
    theirs = torch.stack([T.ColorJitter(0.8, 0.8, 0.8, 0.2)(image[0].float() / 255) for _ in range(n)])
    noise = (theirs.var(0) / n).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 7 * noise + 1e-3).all()
    assert (ours.std(0) / theirs.std(0) - 1).abs().max() < 0.2


# ------------------------------------------------------------------------------------------------------- crop boxes


@pytest.mark.parametrize(("size", "scale"), [(32, (0.08, 1.0)), (32, (0.5, 1.0)), (224, (0.2, 0.6))])
def test_crop_boxes_are_spread_as_torchvisions(size: int, scale: tuple[float, float]) -> None:
    """torchvision draws again where a box does not fit, at most ten times; here there are a few candidates."""
    n, u = 4000, views.uniform(7, torch.arange(4000), 18)
    ours = torch.cat(views.crop_boxes(View(crop_scale=scale), u, limits(size))).T.numpy()
    torch.manual_seed(0)
    image = torch.zeros(3, size, size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [0.75, 4 / 3]) for _ in range(n)])
    top, left, height, width = ours.T
    assert (ours[:, 2:] >= 1).all() and (ours[:, :2] >= 0).all()
    assert (top + height <= size).all() and (left + width <= size).all()
    assert np.array_equal(ours, np.floor(ours))
    for column in range(4):
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 0.02 * size
        assert abs(ours[:, column].std() - theirs[:, column].std()) < 0.02 * size
    areas = [boxes[:, 2] * boxes[:, 3] / size**2 for boxes in (ours, theirs)]
    assert areas[0].min() > 0.7 * scale[0]
    assert abs(areas[0].mean() - areas[1].mean()) < 0.01
    assert stats.ks_2samp(*areas).statistic < 0.06


def test_a_corner_is_reached() -> None:
    view = View(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    (top, left), (height, width) = views.crop_boxes(view, views.uniform(3, torch.arange(500), 18), limits(8))
    assert set(top.tolist()) == set(left.tolist()) == {0, 1, 2, 3, 4}
    assert set(height.tolist()) == set(width.tolist()) == {4}


# ---------------------------------------------------------------------------------------------------- as a function


def test_the_batch_does_not_matter() -> None:
    """To rounding: a batched matrix product may add in another order."""
    images, samples, kind = pixels(32, 16), torch.randperm(1000)[:32], augment(RICH, 12)
    whole = kind(images, samples, 3)
    for size in (1, 5, 16):
        pieces = [kind(i, s, 3) for i, s in zip(images.split(size), samples.split(size), strict=True)]
        assert gap(torch.cat(pieces), whole) < CLOSE
    order = torch.randperm(32)
    assert gap(kind(images[order], samples[order], 3), whole[order]) < CLOSE


def test_same_draws_for_the_same_arguments_only() -> None:
    image, sample = pixels(1, 16), torch.tensor([4])
    first = augment(RICH)(image, sample, 0)
    torch.manual_seed(1)
    assert torch.equal(augment(RICH)(image, sample, 0), first)
    others = {
        "epoch": augment(RICH)(image, sample, 1),
        "view": augment(RICH, number=1)(image, sample, 0),
        "sample": augment(RICH)(image, torch.tensor([5]), 0),
        "seed": augment(RICH, seed=1)(image, sample, 0),
    }
    for name, other in others.items():
        assert gap(first, other) > 0.05, name


def test_torchs_generator_is_not_touched() -> None:
    before = torch.random.get_rng_state()
    augment(RICH)(pixels(4, 16), torch.arange(4), 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_probabilities() -> None:
    n = 4000
    images = pixels(1, 8).expand(n, -1, -1, -1)
    x = images.float() / 255
    for view, p in [
        (replace(STILL, gray_p=0.2), 0.2),
        (replace(STILL, blur_p=0.2), 0.2),
        (replace(STILL, solarize_p=0.1), 0.1),
    ]:
        changed = (augment(view, 8)(images, torch.arange(n), 0) != x).flatten(1).any(1).float().mean()
        assert abs(float(changed) - p) < 5 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize(("scale", "size"), [(1.0, 16), (0.5, 8), (0.43, 7), (0.01, 1)])
def test_size_scale(scale: float, size: int) -> None:
    """A local crop is the same crop at a smaller size."""
    images = pixels(4, 16)
    small = augment(replace(RICH, blur_p=0.0, size_scale=scale))(images, torch.arange(4), 0)
    assert small.shape == (4, 3, size, size)
    same = Augment(replace(RICH, blur_p=0.0), size, MEAN, STD, 0, 0, True)(images, torch.arange(4), 0)
    assert torch.equal(small, same)


def test_a_view_without_colour_is_the_same_to_the_bit_as_one_whose_colour_never_applies() -> None:
    """Colour that never applies is not computed at all; a chance of 1e-30 makes it computed and never applied."""
    never = replace(RICH, jitter_p=0.0, gray_p=0.0)
    seldom = replace(never, jitter_p=1e-30)
    images, rows = pixels(64, 16), torch.arange(64)
    assert torch.equal(augment(never)(images, rows, 3), augment(seldom)(images, rows, 3))


def test_rectangular_images() -> None:
    image = torch.randint(0, 256, (3, 3, 10, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = augment(replace(STILL, crop_ratio=(2.0, 2.0)), 8)(image, torch.arange(3), 0)
    theirs = F.resize(image.float() / 255, [8, 8], antialias=True)
    assert gap(ours, theirs) < 1e-5


def test_values_stay_in_range() -> None:
    x = augment(RICH, 16)(pixels(256, 16), torch.arange(256), 0)
    assert x.isfinite().all()
    assert x.min() >= -1e-6 and x.max() <= 1 + 1e-6


def test_a_table_of_an_epochs_draws_and_views_in_one_call_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, here on a CPU."""
    views_of = (View(), View(blur_p=0.4, solarize_p=0.6), View(size_scale=0.5), View(crop_scale=(0.5, 1.0)))
    augments = [augment(view, number=number) for number, view in enumerate(views_of)]
    images, rows = pixels(30, 16), torch.tensor([3, 29, 0, 11, 12])
    made = views.Views(augments, 30)
    made.calls, made.has_table = views.calls_for(augments), True
    assert [call.count for call in made.calls] == [2, 1, 1]
    for epoch in (0, 0, 1):
        for one, other in zip(made(images[rows], rows, epoch), augments, strict=True):
            assert gap(one, other(images[rows], rows, epoch)) < CLOSE
