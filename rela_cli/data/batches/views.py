"""Views on the device: a batch of uint8 images in, a batch of augmented float images out.

Every sample has parameters of its own, drawn by randomness.py from (seed, epoch, sample, view), and no operation
loops over samples or depends on their number. The operations are torchvision's: `functional` crop-and-resize
(antialiased where it shrinks), brightness, contrast, saturation, hue in a random order, grayscale, solarize,
Gaussian blur. One difference, stated: values are not rounded to uint8 between operations.

Shapes: B batch, C = 3 channels, H x W in, S x S out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from rela_cli.config.schema import View
from rela_cli.numerics.randomness import stream_key, uniform

CANDIDATES = 4  # crop boxes drawn for each sample; torchvision draws up to 10, one after the other
DRAWS = 2 * CANDIDATES + 16  # random numbers a view takes
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, torchvision's digits
Place = tuple[Tensor, Tensor, Tensor]  # first pixel and length of (vertical, horizontal), (2, B) each; mirrored (B,)
Chance = float | Tensor
TABLE = 2 * 10**9  # bytes, the most that a GPU keeps of an epoch's random numbers


@dataclass(frozen=True)
class Constants:
    """Tensors that the operations need, made once: a GPU is waited for when one is made in a step."""

    one: Tensor  # ()
    gray: Tensor  # (1, 3, 1, 1)
    sectors: Tensor  # (1, 3, 1, 1), of red, green and blue in hue
    slots: Tensor  # (3,)

    @classmethod
    def on(cls, device: torch.device) -> Constants:
        """On a device."""
        gray, sectors = (torch.tensor(values).view(1, 3, 1, 1).to(device) for values in (GRAY, (5.0, 3.0, 1.0)))
        return cls(torch.ones((), device=device), gray, sectors, torch.arange(3, device=device))


@dataclass(frozen=True)
class ResampleGrid:
    """Pixels of one side, n of them, and the S points that they are resampled to."""

    pixel: Tensor  # (1, n), 0, 1, ...
    middle: Tensor  # (1, n), 0.5, 1.5, ...
    point: Tensor  # (S, 1), 0.5, 1.5, ...

    @classmethod
    def of(cls, size_in: int, size_out: int, device: torch.device) -> ResampleGrid:
        """On a device."""
        pixel, point = (torch.arange(n, device=device, dtype=torch.float32) for n in (size_in, size_out))
        return cls(pixel[None], pixel[None] + 0.5, point[:, None] + 0.5)


class Augment:
    """Draws one kind of view for any batch; S is `size` times the view's `size_scale`."""

    def __init__(self, view: View, size: int, mean: Tensor, std: Tensor, seed: int, number: int, flip: bool) -> None:
        self.view, self.size, self.seed, self.number = view, max(1, round(view.size_scale * size)), seed, number
        self.flip_p = view.flip_p if flip else 0.0
        self.mean, self.std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        strength = torch.tensor(view.jitter[:3])
        low, high = (1 - strength).clamp(min=0), 1 + strength
        self.low, self.span = low.to(mean.device), (high - low).to(mean.device)
        self.constants = Constants.on(mean.device)
        self.shapes: dict[torch.Size, tuple[Tensor, list[ResampleGrid]]] = {}

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """(B, 3, H, W) uint8 and the samples' indices (B,) -> (B, 3, S, S) float32, normalised."""
        return self.drawn(images, self.draws(indices, epoch))

    @property
    def kind(self) -> object:
        """Equal for views that one call can make: those differ only in how often they are blurred or solarized."""
        return replace(self.view, blur_p=0.0, solarize_p=0.0), self.size, self.seed, self.flip_p

    def draws(self, indices: Tensor, epoch: int) -> Tensor:
        """The random numbers of some samples' views: (B,) -> (B, DRAWS) in [0, 1)."""
        return uniform(stream_key(self.seed, "augment", epoch, self.number), indices, DRAWS)

    def drawn(
        self, images: Tensor, u: Tensor, place: Place | None = None, chances: Sequence[Chance] | None = None
    ) -> Tensor:
        """The views that `u` (B, DRAWS) makes of images; tensors alone go in, which is what torch.compile wants.

        `place` says where they are cut from the images, instead of `u`; `chances` how often they are blurred and
        solarized, one for all or (B,), instead of the view.
        """
        blur_p, solarize_p = chances or (self.view.blur_p, self.view.solarize_p)
        box, color, late = u.split((2 * CANDIDATES + 3, 10, 3), dim=1)
        x = images / 255
        limits, grids = self.sides(x.shape[-2:])
        start, side, mirrored = place or self.place(box, limits)
        x = crop_resize(x, start, side, grids, flip=mirrored)
        x = self.color(x, color)
        if isinstance(blur_p, Tensor) or blur_p > 0:
            low, high = self.view.blur_sigma
            x = gaussian_blur(x, low + (high - low) * late[:, 0], late[:, 1] < blur_p)
        if isinstance(solarize_p, Tensor) or solarize_p > 0:
            x = torch.where((late[:, 2] < solarize_p).view(-1, 1, 1, 1) & (x >= 128 / 255), 1 - x, x)
        return (x - self.mean) / self.std

    def sides(self, shape: torch.Size) -> tuple[Tensor, list[ResampleGrid]]:
        """Height and width (2, 1, 1) of images, and the grids of both sides, or the one of both; made once."""
        if shape not in self.shapes:
            device = self.mean.device
            sizes = [shape[0]] if shape[0] == shape[1] else list(shape)
            limits = torch.tensor(shape, dtype=torch.float32).view(2, 1, 1).to(device)
            self.shapes[shape] = limits, [ResampleGrid.of(size, self.size, device) for size in sizes]
        return self.shapes[shape]

    def place(self, u: Tensor, limits: Tensor) -> Place:
        """Where `u` lets its views be cut, and whether it mirrors them."""
        box = u[:, : 2 * CANDIDATES + 3]
        return *crop_boxes(self.view, box, limits), box[:, -1] < self.flip_p

    def color(self, x: Tensor, u: Tensor) -> Tensor:
        """Colour jitter with a factor and an order per sample, then grayscale."""
        hue, constants = self.view.jitter[3], self.constants
        apply = u[:, 0] < self.view.jitter_p
        factors = torch.where(apply[:, None], self.low + self.span * u[:, 1:4], constants.one)
        order = u[:, 4:7].argsort(dim=1)  # of brightness, contrast, saturation
        shift = hue * (2 * u[:, 7] - 1) * apply
        x = jitter(x, factors, order, shift, (u[:, 8] * 4).floor(), constants)
        return torch.where((u[:, 9] < self.view.gray_p).view(-1, 1, 1, 1), luma(x, constants), x)


@dataclass(frozen=True)
class Call:
    """Views of one kind, which are made together."""

    augment: Augment
    count: int
    chances: tuple[Chance, Chance]  # of blur and of solarization: one for all, or one a view, (count, 1)

    @classmethod
    def of(cls, augments: Sequence[Augment]) -> Call:
        """The call that makes the views of several augmentations."""
        views = [augment.view for augment in augments]
        both = [view.blur_p for view in views], [view.solarize_p for view in views]
        device = augments[0].mean.device
        blur, solarize = (p[0] if len(set(p)) == 1 else torch.tensor(p).view(-1, 1).to(device) for p in both)
        return cls(augments[0], len(augments), (blur, solarize))

    def drawn(self, images: Tensor, draws: Sequence[Tensor], place: Place | None) -> Sequence[Tensor]:
        """Each view (B, 3, S, S) of images, from its random numbers (B, DRAWS)."""
        if self.count == 1:
            return [self.augment.drawn(images, draws[0], place)]
        every = [p.expand(-1, len(images)).flatten() if isinstance(p, Tensor) else p for p in self.chances]
        found = self.augment.drawn(images.repeat(self.count, 1, 1, 1), torch.cat(tuple(draws)), place, every)
        return found.chunk(self.count)


class Views:
    """The views of a phase, for one batch after another.

    A GPU is launch-bound here, so views of one kind are made in one call, and the random numbers of all of an epoch's
    samples at its start, where they fit. The numbers are the same either way.
    """

    def __init__(self, augments: Sequence[Augment], samples: int) -> None:
        self.augments, self.samples, self.epoch = list(augments), samples, -1
        is_gpu = augments[0].mean.device.type == "cuda"
        self.calls = calls_for(augments) if is_gpu else [Call.of([augment]) for augment in augments]
        self.has_table = is_gpu and 4 * DRAWS * samples * len(augments) <= TABLE

    def __call__(self, images: Tensor, rows: Tensor, epoch: int, places: Sequence[Place] = ()) -> list[Tensor]:
        """(B, 3, H, W) uint8 of the samples `rows` (B,) -> each view (B, 3, S, S) float32, normalised.

        `places` says where each view is cut, instead of the random numbers.
        """
        return self.drawn(images, self.draws(rows, epoch), places)

    def drawn(self, images: Tensor, draws: Sequence[Tensor], places: Sequence[Place] = ()) -> list[Tensor]:
        """The views from the random numbers of each, (B, DRAWS)."""
        views = list[Tensor]()
        for call in self.calls:
            these = slice(len(views), len(views) + call.count)
            views += call.drawn(images, draws[these], side_by_side(places[these]))
        return views

    def places(self, rows: Tensor, epoch: int, shape: torch.Size) -> list[Place]:
        """Where each view of samples (B,) is cut from images of H x W pixels, unless the caller says where."""
        pairs = zip(self.augments, self.draws(rows, epoch), strict=True)
        return [augment.place(u, augment.sides(shape)[0]) for augment, u in pairs]

    def draws(self, rows: Tensor, epoch: int) -> Sequence[Tensor]:
        """The random numbers of each view, (B, DRAWS)."""
        if not self.has_table:
            return [augment.draws(rows, epoch) for augment in self.augments]
        if epoch != self.epoch:
            samples = torch.arange(self.samples, device=rows.device)
            parts = [torch.cat([a.draws(some, epoch) for some in samples.split(2**17)]) for a in self.augments]
            self.table, self.epoch = torch.cat(parts, dim=1), epoch
        return self.table[rows].split(DRAWS, dim=1)


def side_by_side(places: Sequence[Place]) -> Place | None:
    """The places of several batches as of one; None where there are none."""
    if not places:
        return None
    start, side, mirrored = zip(*places, strict=True)
    return torch.cat(start, dim=1), torch.cat(side, dim=1), torch.cat(mirrored)


def calls_for(augments: Sequence[Augment]) -> list[Call]:
    """As few calls as can be: neighbours of one kind together."""
    return [Call.of(list(some)) for _, some in groupby(augments, lambda augment: augment.kind)]


def crop_boxes(view: View, u: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Random resized crop: first pixel and length of (vertical, horizontal), whole pixels, (2, B) each.

    The first candidate that fits into `limits` (2, 1, 1).
    """
    (low, high), (narrow, wide) = view.crop_scale, view.crop_ratio
    area = limits.prod() * (low + (high - low) * u[:, :CANDIDATES])
    ratio = narrow * (wide / narrow) ** u[:, CANDIDATES : 2 * CANDIDATES]
    sides = torch.stack((area / ratio, area * ratio)).sqrt().round()  # (2, B, CANDIDATES)
    first = (sides <= limits).all(0).float().argmax(1, keepdim=True).expand(2, -1, 1)
    side = sides.clamp(min=1).minimum(limits).gather(2, first).squeeze(2)
    start = u[:, 2 * CANDIDATES : 2 * CANDIDATES + 2].T * (limits.squeeze(2) - side + 1)
    return start.floor(), side


def axis_weights(start: Tensor, length: Tensor, grid: ResampleGrid) -> Tensor:
    """Bilinear resampling of [start, start + length) to S points as a matrix: (...) -> (..., S, n).

    The triangle widens where it shrinks (antialias), and a weight outside the box is dropped and the rest
    renormalised, which is what clamping to the border amounts to.
    """
    start, length = start[..., None, None], length[..., None, None]
    scale = length / len(grid.point)
    center = start + grid.point * scale
    weights = (1 - (grid.middle - center).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = (grid.pixel >= start) & (grid.pixel < start + length)
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)


def crop_resize(x: Tensor, start: Tensor, side: Tensor, grids: Sequence[ResampleGrid], flip: Tensor) -> Tensor:
    """Crop boxes (2, B), resize them to S x S, flip where `flip`: (B, C, H, W) -> (B, C, S, S), by matrix products.

    Of square images `grids` has one grid, else one of each side.
    """
    both = axis_weights(start, side, grids[0]) if len(grids) == 1 else map(axis_weights, start, side, grids)
    rows, columns = both  # (B, S, H), (B, S, W)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    return rows[:, None] @ x @ columns[:, None].transpose(-1, -2)


def luma(x: Tensor, constants: Constants) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)"""
    return (x * constants.gray).sum(1, keepdim=True)


def jitter(
    x: Tensor, factors: Tensor, order: Tensor, shift: Tensor, hue_position: Tensor, constants: Constants
) -> Tensor:
    """Brightness, contrast, saturation in each sample's `order` (B, 3), hue before the `hue_position`-th of them.

    The three are blends with black, the mean luma and the luma, so one blend serves all samples at once; a
    sample whose turn is on the other side of its hue shift takes factor 1 there. Factors: (B, 3), shift: (B,).
    """
    turns, is_before = factors.gather(1, order), constants.slots < hue_position[:, None]
    order = order.repeat(1, 2)
    of_mean = order == 1
    turns = torch.cat((torch.where(is_before, turns, constants.one), torch.where(is_before, constants.one, turns)), 1)
    rest = (1 - turns) * (order != 0)
    for slot, (factor, other, is_mean) in enumerate(zip(turns.T, rest.T, of_mean.T, strict=True)):
        x = shift_hue(x, shift, constants) if slot == 3 else x
        x = blend(x, factor, other, is_mean, constants)
    return x


def blend(x: Tensor, factor: Tensor, rest: Tensor, of_mean: Tensor, constants: Constants) -> Tensor:
    """`factor` times each sample and `rest` times its mean luma or its luma, all (B,); clamped to [0, 1]."""
    gray = luma(x, constants)
    factor, rest, of_mean = (value.view(-1, 1, 1, 1) for value in (factor, rest, of_mean))
    base = torch.where(of_mean, gray.mean((-2, -1), keepdim=True), gray)
    rest = rest * base
    mixed = torch.addcmul(rest, factor, x) if x.is_cuda else (factor * x).add_(rest)  # the same but for a rounding
    return mixed.clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor, constants: Constants) -> Tensor:
    """Rotate hue by `shift` (B,) turns, at most half a one, through HSV; samples with shift 0 stay as they were."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x.unbind(1)
    safe = torch.where(chroma == 0, constants.one, chroma).squeeze(1)
    top = value.squeeze(1)
    hue = torch.where(r == top, (g - b) / safe, torch.where(g == top, 2 + (b - r) / safe, 4 + (r - g) / safe))
    turned = modulo_six(hue + 6 * shift.view(-1, 1, 1))[:, None]
    sector = modulo_six(turned + constants.sectors)
    shifted = value - chroma * torch.minimum(sector, 4 - sector).clamp(0, 1)
    return torch.where(shift.view(-1, 1, 1, 1) == 0, x, shifted)


def modulo_six(x: Tensor) -> Tensor:
    """x modulo 6; for x in (-6, 12) both ways give exactly the same, and torch's own is slow on a CPU."""
    return x.remainder(6) if x.is_cuda else torch.sub(x, (x / 6).floor(), alpha=6)


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
