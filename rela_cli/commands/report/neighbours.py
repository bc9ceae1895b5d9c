"""Nearest neighbours of some test images, by a run's learner before and after its training, as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.errors import MissingError, RelaError
from rela_cli.report.page.page import Neighbourhood, Picture
from rela_cli.report.results.run_files import cached
from rela_cli.store.entries import Entry
from rela_cli.store.files import read_json
from rela_cli.weights.run_folder import run_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rela_cli.data.batches.cache import ImageStats, Split
    from rela_cli.data.batches.loader import Images

QUERIES, NEAREST = 8, 6  # test images shown, and train images beside each
BANK = {64: 5000, 10**9: 1000}  # train images looked at, by the images' size in pixels at most: seconds on a CPU
PICTURE_SIDE = 96  # pixels of a picture at most
IMAGES_AT_A_TIME = 256  # images at a time


def neighbours_of_run(folder: Path) -> list[Neighbourhood]:
    """For test images of as many classes as can be: the nearest train images, by the untrained and the trained learner.

    Raises:
        RelaError: the images or the backbone are gone, or the run's config names classes of other packages.
    """
    from rela_cli.data.batches.cache import read_stats
    from rela_cli.learners.build import build_backbone, load_backbone

    tree = run_config(folder)
    entry = images_of(folder)
    train, test = (split_of_run(entry, name, tree) for name in ("train", "test"))
    data = read_stats(entry)
    trained = load_backbone(folder)  # first: it refuses classes from elsewhere
    untrained = build_backbone(Part.from_tree(tree["learner"]), tree["seed"], data.size).eval()
    limit = next(count for size, count in BANK.items() if data.size <= size)
    bank = rows(len(train.images), limit)
    asked = queries(test)
    seen, wanted = train.images[bank], test.images[asked]
    before, after = (nearest_images(network, seen, wanted, data) for network in (untrained, trained))
    names = (entry.manifest or {}).get("classes")
    picture = lambda split, i: Picture(png(split.images[i : i + 1][0]), label(split, i, names))  # noqa: E731
    return [
        Neighbourhood(
            picture(test, int(query)),
            tuple(picture(train, int(bank[i])) for i in one),
            tuple(picture(train, int(bank[i])) for i in other),
        )
        for query, one, other in zip(asked, before, after, strict=True)
    ]


def images_of(folder: Path) -> Entry:
    """The cache entry of the run's images.

    Raises:
        MissingError: it is gone, or not whole.
    """
    place = cached(folder, "images")
    spec = (read_json(place / "manifest.json") or {}).get("spec") if place else None
    entry = Entry("images", spec, place.parent.parent) if place and spec else None
    if entry is None or entry.manifest is None:
        raise MissingError("its images are no longer in the cache, so there are no neighbours to show")
    return entry


def split_of_run(entry: Entry, name: str, tree: dict) -> Split:
    """A split of the run's images; from the dataset's own files where they stay on disk.

    Raises:
        MissingError: there is no such split, or its files are gone.
    """
    from rela_cli.data.batches.cache import read_split

    on_disk = (entry.manifest or {}).get("on_disk")
    dataset = instantiate(Part.from_tree(tree["dataset"]), cache=entry.root) if on_disk else None
    split = read_split(entry, name, dataset)
    if split is None:
        raise MissingError(f"its dataset has no {name} split, so there are no neighbours to show")
    return split


def rows(count: int, limit: int) -> Tensor:
    """At most `limit` rows, spread evenly."""
    import torch

    return torch.arange(count)[:: max(1, -(-count // limit))]


def queries(test: Split) -> Tensor:
    """Rows of the first test image of each class, classes spread evenly; without labels, of images spread evenly."""
    import torch

    if test.labels is None:
        return rows(len(test.images), QUERIES)
    classes = test.labels.unique()
    chosen = classes[torch.linspace(0, len(classes) - 1, min(QUERIES, len(classes))).round().long()]
    return torch.stack([(test.labels == one).nonzero()[0, 0] for one in chosen])


def nearest_images(network: nn.Module, bank: Images, wanted: Images, data: ImageStats) -> Sequence[Sequence[int]]:
    """Positions in the bank (B) of the nearest by cosine of each image wanted (Q): (Q, NEAREST)."""
    from torch.nn import functional as F

    from rela_cli.evaluation.representation import representations

    one, other = (F.normalize(representations(network, x, data, IMAGES_AT_A_TIME), dim=1) for x in (wanted, bank))
    found: Sequence[Sequence[int]] = (one @ other.T).topk(min(NEAREST, len(other)), dim=1).indices.tolist()
    return found


def label(split: Split, row: int, names: Sequence[str] | None) -> str | None:
    """The name of an image's class, None where there are no labels."""
    if split.labels is None:
        return None
    number = int(split.labels[row])
    return str(names[number]) if names else str(number)


def png(pixels: Tensor) -> bytes:
    """(3, H, W) uint8 as a PNG of at most PICTURE_SIDE pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def neighbours_or_why(folder: Path) -> list[Neighbourhood] | str:
    """The nearest neighbours of a run, or a sentence that says why there are none."""
    try:
        return neighbours_of_run(folder)
    except (RelaError, OSError, KeyError) as error:
        return f"none: {error}"
