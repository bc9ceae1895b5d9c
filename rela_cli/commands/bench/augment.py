"""Two views an image: ours by the batch on the device, the peers' by their own means; one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison
from rela_cli.commands.bench.paper import light_views
from rela_cli.commands.bench.timing import Contestant
from rela_cli.config.schema import View
from rela_cli.data.batches.cache import ImageStats
from rela_cli.data.batches.views import Augment, Constants, ResampleGrid, crop_resize, jitter

NAME = "augment"
BATCH = 128
LIGHT = View(crop_scale=(0.5, 1.0))  # phase 1's, as conf/matching/cosine.yaml has it
RATIO_TARGETS = {  # of the ratio: eager, compiled
    "torchvision-v1": (5.0, 12.0),
    "torchvision-v2": (None, None),
    "lightly": (None, None),
    "kornia": (1.7, None),
}


def run(bench: Bench) -> Iterator[BenchRow]:
    """On the CPU and, where there is one, on the GPU."""
    if "cpu" in bench.devices:
        with material.threads(1):
            yield from on(bench, torch.device("cpu"), bench.size(2048, 2 * BATCH))
    if bench.has_gpu(NAME):
        yield from on(bench, torch.device("cuda"), bench.size(50_000, 2 * BATCH), ("kornia",))


def on(bench: Bench, device: torch.device, n: int, peers: tuple[str, ...] = tuple(RATIO_TARGETS)) -> Iterator[BenchRow]:
    """Ours, eager and compiled, against some peers."""
    pixels, _ = material.images(bench, n)
    is_cpu = device.type == "cpu"
    data, batch = material.stats(pixels), BATCH if is_cpu else min(n, 4096)
    ours = [Augment(LIGHT, 32, data.mean.to(device), data.std.to(device), 0, number, True) for number in range(2)]
    blocks = [(pixels[rows].to(device), rows.to(device)) for rows in torch.arange(n).split(batch) if len(rows) == batch]
    contestants = [
        Contestant("eager", partial(views_of, ours, blocks), is_ours=True),
        Contestant("compiled", partial(views_of, [compiled(augment) for augment in ours], blocks)),
        *(Contestant(peer, VIEWERS[peer](pixels, data, device, batch)) for peer in peers if bench.wants(NAME, peer)),
    ]
    work = f"two 32x32 views of {n:,} images, {device.type}"
    comparisons = [
        Comparison(how, peer, f"{work}, {how}", target if is_cpu else None, "cpu" if is_cpu else "wall")
        for peer in peers
        for how, target in zip(("eager", "compiled"), RATIO_TARGETS[peer], strict=True)
    ]
    outcome = exactness(pixels[:64])
    yield from bench.scores(NAME, contestants, comparisons, lambda results, peer: outcome)


def compiled(augment: Augment) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Compiled views. The draws stay outside: their key is a Python number that changes with the epoch."""
    drawn = torch.compile(augment.drawn, dynamic=False)
    return lambda images, rows, epoch: drawn(images, augment.draws(rows, epoch))


def views_of(augments: Sequence[Callable[..., Tensor]], blocks: list[tuple[Tensor, Tensor]]) -> None:
    """Both views of every block."""
    for block, rows in blocks:
        for augment in augments:
            augment(block, rows, 0)
    if blocks[0][0].is_cuda:
        torch.cuda.synchronize()


def exactness(pixels: Tensor) -> str:
    """The largest difference between our operations and torchvision's functional ones, on the same parameters."""
    from torchvision.transforms.v2 import functional as F

    x = pixels.float() / 255
    n, even = len(x), torch.arange(3).expand(len(x), 3)
    constants = Constants.on(x.device)
    start, side = (torch.tensor(values).float().expand(n, 2).T for values in ((3, 5), (24, 20)))
    cropped = crop_resize(x, start, side, [ResampleGrid.of(32, 32, x.device)], torch.ones(n, dtype=torch.bool))
    theirs = F.horizontal_flip(F.resized_crop(x, 3, 5, 24, 20, [32, 32], antialias=False))
    worst = (cropped - theirs).abs().max()
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for place, operation in enumerate(operations):
        factors = torch.ones(n, 3)
        factors[:, place] = 1.3
        found = jitter(x, factors, even, torch.zeros(n), torch.zeros(n), constants)
        worst = torch.maximum(worst, (found - operation(x, 1.3)).abs().max())
    turned = jitter(x, torch.ones(n, 3), even, torch.full((n,), 0.15), torch.zeros(n), constants)
    worst = torch.maximum(worst, (turned - F.adjust_hue(x, 0.15)).abs().max())
    return f"largest difference to torchvision's functional operations {worst:.1e}"


# ------------------------------------------------------------------------------------------------------------- peers


def by_image(view: Callable[[Any], Tensor], items: list[Any]) -> None:
    """Two views of one image after the other, stacked into batches."""
    for start in range(0, len(items), BATCH):
        for _ in range(2):
            torch.stack([view(item) for item in items[start : start + BATCH]])


def as_images(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, S, S) uint8 as Pillow images."""
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def torchvision_v1(pixels: Tensor, data: ImageStats, device: torch.device, batch: int) -> Callable[[], None]:
    """Pillow images, one by one: the paper's."""
    return partial(by_image, light_views(32, data), as_images(pixels))


def torchvision_v2(pixels: Tensor, data: ImageStats, device: torch.device, batch: int) -> Callable[[], None]:
    """uint8 tensors, one by one, since one call draws one set of parameters."""
    from torchvision.transforms import v2

    view = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean.tolist(), data.std.tolist()),
        ]
    )
    return partial(by_image, view, list(pixels))


def lightly(pixels: Tensor, data: ImageStats, device: torch.device, batch: int) -> Callable[[], None]:
    """lightly's transform of a BYOL view, told to draw the same views, on Pillow images."""
    from lightly.transforms.byol_transform import BYOLView1Transform

    view = BYOLView1Transform(
        input_size=32,
        min_scale=0.5,
        cj_bright=0.8,
        cj_contrast=0.8,
        cj_sat=0.8,
        cj_hue=0.2,
        gaussian_blur=0.0,
        normalize={"mean": data.mean.tolist(), "std": data.std.tolist()},
    )
    return partial(by_image, view, as_images(pixels))


def kornia(pixels: Tensor, data: ImageStats, device: torch.device, batch: int) -> Callable[[], None]:
    """Batches of floats, parameters of its own for each sample."""
    from kornia import augmentation as K

    view = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=(0.5, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(data.mean, data.std),
        data_keys=["input"],
    ).to(device)

    def all_views() -> None:
        for block in pixels.split(batch):
            x = block.to(device).float() / 255
            view(x)
            view(x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return all_views


VIEWERS = {"torchvision-v1": torchvision_v1, "torchvision-v2": torchvision_v2, "lightly": lightly, "kornia": kornia}
