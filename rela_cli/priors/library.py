"""A model of a library by its name: what timm and torchvision have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from rela_cli.errors import ConfigError
from rela_cli.numerics.randomness import torch_seed
from rela_cli.priors.base import NetworkPrior, Preprocess, built_at
from rela_cli.priors.loading import WeightsFile, fill_network
from rela_cli.priors.reading import State


class LibraryPrior(NetworkPrior):
    """The library's `model` without its classifier, pooled: (B, 3, H, W) uint8 -> (B, D).

    `tag` names published weights where a model has several; preprocessing belongs to them, also when `weights` is a
    file. What is None is the model's own.

    Raises:
        ConfigError: unknown model or tag, or weights that do not fit. MissingError: no readable file.
    """

    def __init__(
        self,
        model: str,
        weights: str,
        tag: str = "",
        trust: bool = False,
        prefix: str | None = None,
        ignore: Sequence[str] = (),
        image_size: int | None = None,
        crop: float | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
        pool: str = "none",
    ) -> None:
        asked = {"image_size": image_size, "crop": crop, "mean": mean, "std": std, "interpolation": interpolation}
        preprocess = self.published_preprocess(model, tag).instead(**asked)
        if preprocess.image_size is None:
            raise ConfigError(
                f"prior.model={model} is made for images that are not square; say prior.image_size=PIXELS"
            )
        with built_at(model, preprocess.image_size), torch_seed(0, "prior"):
            network = self.build(model, preprocess.image_size)
        fill_network(network, WeightsFile(weights, trust, prefix, ignore), self.translation(model, network))
        super().__init__(network, preprocess, model, pool=pool)

    def published_preprocess(self, model: str, tag: str) -> Preprocess:
        """What belongs to the published weights; without a size where their images are not square."""
        raise NotImplementedError

    def build(self, model: str, image_size: int) -> nn.Module:
        """The network with untrained weights."""
        raise NotImplementedError

    def translation(self, model: str, network: nn.Module) -> Callable[[State], State] | None:
        """The library's own way from published names and sizes to its own, where it has one."""
        raise NotImplementedError
