"""Any pretrained classifier of torchvision, with the preprocessing that belongs to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision import models

from rela_cli.errors import ConfigError, nearest
from rela_cli.learners.build import measured
from rela_cli.learners.torchvision import check_name, torchvision_model
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.loading import fill
from rela_cli.streams import seeded


class TorchvisionPrior(NetworkPrior):
    """torchvision's `model` without its last linear layer: (B, 3, H, W) uint8 -> (B, D).

    `tag` names its weights (IMAGENET1K_V1, ..., DEFAULT), also when `weights` is a file: preprocessing belongs to them.

    Raises:
        ConfigError: unknown model or tag, or weights that do not fit. MissingError: no readable file.
    """

    def __init__(
        self,
        model: str,
        tag: str,
        weights: str,
        trust: bool = False,
        prefix: str | None = None,
        ignore: Sequence[str] = (),
        image_size: int | None = None,
        crop: float | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
    ) -> None:
        own = tag_weights(model, tag).transforms()
        size, side = own.crop_size[0], own.resize_size[0]
        fed = Preprocess(size, tuple(own.mean), tuple(own.std), size / side, own.interpolation.value)
        preprocess = fed.instead(image_size=image_size, crop=crop, mean=mean, std=std, interpolation=interpolation)
        assert preprocess.image_size is not None
        with seeded(0, "prior"):
            network = torchvision_model(model, preprocess.image_size)
        fill(network, weights, trust, prefix, ignore)
        network.feature_dim = measured(network, preprocess.image_size)  # type: ignore[assignment]
        super().__init__(network, preprocess)

    @staticmethod
    def sources(model: str, tag: str, **_: Any) -> list[str]:
        """Where torchvision has the weights of a tag from."""
        return [tag_weights(model, tag).url]


def tag_weights(model: str, tag: str) -> Any:
    """torchvision's entry for the weights of a model.

    Raises:
        ConfigError: unknown model, or weights that it has not got, with the nearest name.
    """
    check_name(model)
    known = models.get_model_weights(model)
    names = [*known.__members__]
    if tag not in names:
        raise ConfigError(
            f"torchvision has no weights {tag} of {model}{nearest(tag, names)}. Allowed: {', '.join(names)}"
        )
    return known[tag]
