"""Views on the device: a batch of uint8 images in, a batch of augmented float images out.

Every sample has parameters of its own, drawn by `streams` from (seed, epoch, sample, view), and no operation
loops over samples or depends on their number. The operations are torchvision's: `functional` crop-and-resize
(antialiased where it shrinks), brightness, contrast, saturation, hue in a random order, grayscale, solarize,
Gaussian blur. One difference, stated: values are not rounded to uint8 between operations.

Shapes: B batch, C = 3 channels, H x W in, S x S out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rela_cli.config.schema import View
from rela_cli.numerics.randomness import key, uniform

CANDIDATES = 4  # crop boxes drawn for each sample; torchvision draws up to 10, one after the other
DRAWS = 2 * CANDIDATES + 16  # random numbers a view takes
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, torchvision's digits


class Augment:
    """Draws one kind of view for any batch; S is `size` times the view's `size_scale`."""

    def __init__(self, view: View, size: int, mean: Tensor, std: Tensor, seed: int, number: int, flip: bool) -> None:
        self.view, self.size, self.seed, self.number = view, max(1, round(view.size_scale * size)), seed, number
        self.flip_p = view.flip_p if flip else 0.0
        self.mean, self.std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """(B, 3, H, W) uint8 and the samples' indices (B,) -> (B, 3, S, S) float32, normalised."""
        return self.drawn(images, self.draws(indices, epoch))

    def draws(self, indices: Tensor, epoch: int) -> Tensor:
        """The random numbers of some samples' views: (B,) -> (B, DRAWS) in [0, 1)."""
        return uniform(key(self.seed, "augment", epoch, self.number), indices, DRAWS)

    def drawn(self, images: Tensor, u: Tensor) -> Tensor:
        """The views that `u` (B, DRAWS) makes of images; tensors alone go in, which is what torch.compile wants."""
        box, color, late = u.split((2 * CANDIDATES + 3, 10, 3), dim=1)
        x = images.to(torch.float32) / 255
        x = crop_resize(x, *self.crop_boxes(box, x.shape[-2:]), self.size, flip=box[:, -1] < self.flip_p)
        x = self.color(x, color) if self.view.jitter_p > 0 or self.view.gray_p > 0 else x.clamp(0, 1)
        if self.view.blur_p > 0:
            low, high = self.view.blur_sigma
            x = gaussian_blur(x, low + (high - low) * late[:, 0], late[:, 1] < self.view.blur_p)
        if self.view.solarize_p > 0:
            x = torch.where((late[:, 2] < self.view.solarize_p).view(-1, 1, 1, 1) & (x >= 128 / 255), 1 - x, x)
        return (x - self.mean) / self.std

    def crop_boxes(self, u: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random resized crop: top, left, height, width in whole pixels, each (B,). The first candidate that fits."""
        height, width = shape
        (low, high), (narrow, wide) = self.view.crop_scale, self.view.crop_ratio
        area = height * width * (low + (high - low) * u[:, :CANDIDATES])
        ratio = narrow * (wide / narrow) ** u[:, CANDIDATES : 2 * CANDIDATES]
        h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        first = ((h <= height) & (w <= width)).float().argmax(1, keepdim=True)
        h, w = (side.gather(1, first).squeeze(1) for side in (h.clamp(1, height), w.clamp(1, width)))
        top, left = (
            (u[:, 2 * CANDIDATES] * (height - h + 1)).floor(),
            (u[:, 2 * CANDIDATES + 1] * (width - w + 1)).floor(),
        )
        return top, left, h, w

    def color(self, x: Tensor, u: Tensor) -> Tensor:
        """Colour jitter with a factor and an order per sample, then grayscale."""
        brightness, contrast, saturation, hue = self.view.jitter
        apply = u[:, 0] < self.view.jitter_p
        strength = torch.tensor([brightness, contrast, saturation], device=x.device)
        low, high = (1 - strength).clamp(min=0), 1 + strength
        factors = torch.where(apply[:, None], low + (high - low) * u[:, 1:4], 1.0)
        order = u[:, 4:7].argsort(dim=1)  # of brightness, contrast, saturation
        shift = torch.where(apply, hue * (2 * u[:, 7] - 1), 0.0)
        x = jitter(x, factors, order, shift, hue_position=(u[:, 8] * 4).floor())
        return torch.where((u[:, 9] < self.view.gray_p).view(-1, 1, 1, 1), luma(x), x)


def axis_weights(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """Bilinear resampling of [start, start + length) to `size_out` points as a matrix: (B, size_out, size_in).

    The triangle widens where it shrinks (antialias), and a weight outside the box is dropped and the rest
    renormalised, which is what clamping to the border amounts to.
    """
    scale = (length / size_out).view(-1, 1, 1)
    out = torch.arange(size_out, device=start.device, dtype=torch.float32).view(1, -1, 1)
    pixel = torch.arange(size_in, device=start.device, dtype=torch.float32).view(1, 1, -1)
    center = start.view(-1, 1, 1) + (out + 0.5) * scale
    weights = (1 - (pixel + 0.5 - center).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = (pixel >= start.view(-1, 1, 1)) & (pixel < (start + length).view(-1, 1, 1))
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)


def crop_resize(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int, flip: Tensor) -> Tensor:
    """Crop boxes, resize them to S x S, flip where `flip`: (B, C, H, W) -> (B, C, S, S), by two matrix products."""
    rows = axis_weights(top, height, x.shape[-2], size)  # (B, S, H)
    columns = axis_weights(left, width, x.shape[-1], size)  # (B, S, W)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    return rows[:, None] @ x @ columns[:, None].transpose(-1, -2)


def luma(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)"""
    return GRAY[0] * x[:, 0:1] + GRAY[1] * x[:, 1:2] + GRAY[2] * x[:, 2:3]


def jitter(x: Tensor, factors: Tensor, order: Tensor, shift: Tensor, hue_position: Tensor) -> Tensor:
    """Brightness, contrast, saturation in each sample's `order` (B, 3), hue before the `hue_position`-th of them.

    The three are blends with black, the mean luma and the luma, so one blend serves all samples at once; a
    sample whose turn is on the other side of its hue shift takes factor 1 there. Factors: (B, 3), shift: (B,).
    """
    slots = torch.arange(3, device=x.device)
    turn_factors = factors.gather(1, order)
    before = torch.where(slots < hue_position[:, None], turn_factors, 1.0)
    after = torch.where(slots >= hue_position[:, None], turn_factors, 1.0)
    for slot in range(3):
        x = blend(x, order[:, slot], before[:, slot])
    x = shift_hue(x, shift)
    for slot in range(3):
        x = blend(x, order[:, slot], after[:, slot])
    return x


def blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Each sample mixed with its own base: black (operation 0), mean luma (1) or luma (2); clamped to [0, 1]."""
    gray = luma(x)
    operation, factor = operation.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    base = torch.where(operation == 1, gray.mean((-2, -1), keepdim=True), gray) * (operation != 0)
    return (factor * x + (1 - factor) * base).clamp(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate hue by `shift` (B,) turns, at most half a one, through HSV; samples with shift 0 stay as they were."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x.unbind(1)
    safe = torch.where(chroma == 0, 1.0, chroma).squeeze(1)
    top = value.squeeze(1)
    hue = torch.where(r == top, (g - b) / safe, torch.where(g == top, 2 + (b - r) / safe, 4 + (r - g) / safe))
    turned = modulo_six(hue + 6 * shift.view(-1, 1, 1))[:, None]
    sector = modulo_six(turned + torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1))
    shifted = value - chroma * torch.minimum(sector, 4 - sector).clamp(0, 1)
    return torch.where(shift.view(-1, 1, 1, 1) == 0, x, shifted)


def modulo_six(x: Tensor) -> Tensor:
    """x modulo 6, for x in (-6, 12) exactly what torch.remainder gives, whose division is slow on a CPU."""
    return torch.sub(x, (x / 6).floor(), alpha=6)


def gaussian_blur(x: Tensor, sigma: Tensor, apply: Tensor) -> Tensor:
    """Blur each sample by its own sigma (B,) where `apply`; separable, reflected borders, as a matrix product.

    Kernel size: the odd number nearest a tenth of the image, at least 3 (SimCLR, appendix A).
    """
    rows, columns = (blur_matrix(sigma, n) for n in x.shape[-2:])
    blurred = rows[:, None] @ x @ columns[:, None].transpose(-1, -2)
    return torch.where(apply.view(-1, 1, 1, 1), blurred, x)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """(B, size, size) banded matrices of Gaussian weights, with out-of-range taps folded back by reflection."""
    radius = max(1, round(0.05 * size))
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)  # (B, taps)
    source = torch.arange(size, device=sigma.device)[:, None] + offsets
    source = torch.where(source < 0, -source, source)
    source = torch.where(source >= size, 2 * (size - 1) - source, source)  # (size, taps)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), taps[:, None].expand(-1, size, -1))
