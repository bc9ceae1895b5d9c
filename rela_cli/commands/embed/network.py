"""The network that makes features: a run's backbone or a prior, on its device, with what it wants to be fed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rela_cli.commands.embed.images import Files, Square
from rela_cli.config.parts import import_target
from rela_cli.config.schema import Config, Part
from rela_cli.data.batches.cache import ImageStats, Split, channel_stats
from rela_cli.data.batches.loader import DiskImages, sample_rows
from rela_cli.errors import ConfigError, MissingError
from rela_cli.priors.base import NetworkPrior, Prior
from rela_cli.priors.fitting import fitted_prior
from rela_cli.store.files import Facts
from rela_cli.weights.run_folder import decoded_size, run_facts

BLANK = Split(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), None)  # for priors that look at no images beforehand


@dataclass(frozen=True)
class ReadyPrior:
    """A prior, ready, and the square that each image becomes for it."""

    prior: Prior
    device: torch.device
    square: Square

    @property
    def preprocessing(self) -> Facts:
        """What is done to an image, for people and for whoever wants to do the same elsewhere."""
        square, fed = self.square, getattr(self.prior, "preprocess", None)
        shape = {"resize": square.resize, "crop": square.crop, "interpolation": square.interpolation or "bicubic"}
        if fed is None:
            return shape
        if fed.image_size not in (None, square.crop) or fed.crop != 1:
            return {**shape, "then": asdict(fed)}
        return {**shape, "mean": list(fed.mean), "std": list(fed.std), "channels": fed.channels}


def network_of(config: Config, root: Path, paths: Sequence[str], asked: int | None) -> ReadyPrior:
    """The network of a config's prior; one that has to see images first is shown a fixed sample of these.

    `asked` is the side that images are brought to first, as dataset.image_size does it in a run; None: the network's
    own way.

    Raises:
        ConfigError: the prior has no image size of its own, and none was asked for.
    """
    if looks_at_images(config.prior):
        square = square_asked(config.prior, asked)
        sample, stats = sample_with_stats(Files(root, paths, square))
        return ReadyPrior(*fitted_prior(config, sample, stats), square)
    prior, device = fitted_prior(config, BLANK, ImageStats(torch.zeros(3), torch.ones(3), 1))
    square = square_for(config.prior, prior, asked)
    if square.interpolation and isinstance(prior, NetworkPrior):  # then nothing is left for the prior to cut
        prior.preprocess = replace(prior.preprocess, crop=1.0)
    return ReadyPrior(prior, device, square)


def looks_at_images(prior: Part) -> bool:
    """Whether a prior is fitted to images, or asks for their statistics."""
    kind = import_target(prior)
    return "data" in inspect.signature(kind).parameters or getattr(kind, "fit", None) is not Prior.fit


def square_asked(prior: Part, asked: int | None) -> Square:
    """The square that was asked for.

    Raises:
        ConfigError: none was.
    """
    if asked is None:
        raise ConfigError(f"prior={prior.name} takes images of any size: say which, such as --image-size 64")
    return Square(asked, asked)


def square_for(part: Part, prior: Prior, asked: int | None) -> Square:
    """As the run's own images were decoded, or as the library that published the weights does it."""
    if asked is None and part.options.get("run") and isinstance(prior, NetworkPrior):
        folder, size = Path(part.options["run"]), prior.preprocess.image_size or 0
        return Square(round(decoded_size(folder) * size / run_facts(folder)["image_size"]), size)
    fed = prior.preprocess if isinstance(prior, NetworkPrior) else None
    if asked is not None or fed is None or fed.image_size is None:
        return square_asked(part, asked)
    return Square(int(fed.image_size / fed.crop + 1e-6), fed.image_size, fed.interpolation)


def sample_with_stats(files: Files) -> tuple[Split, ImageStats]:
    """Up to 2,000 of the images, the same ones each time, and their statistics.

    Raises:
        MissingError: none of them can be read.
    """
    rows = sample_rows(len(files.paths))
    pixels = DiskImages(files, "files", rows, files.square.side)[slice(None)]
    pixels = pixels[[int(row) not in files.unreadable for row in rows]]
    if not len(pixels):
        raise MissingError(f"none of {len(rows)} images in {files.root} can be read")
    found = channel_stats(pixels.permute(0, 2, 3, 1).numpy())
    stats = ImageStats(torch.tensor(found["mean"]), torch.tensor(found["std"]), files.square.side)
    return Split(pixels, None), stats
