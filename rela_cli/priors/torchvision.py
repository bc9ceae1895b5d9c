"""Any pretrained classifier of torchvision, with the preprocessing that belongs to its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torchvision import models

from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.learners.torchvision import check_name, published_model
from rela_cli.numerics.randomness import torch_seed
from rela_cli.priors.base import NetworkPrior, Preprocess, built_at
from rela_cli.priors.loading import fill_network
from rela_cli.priors.reading import State


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
        pool: str = "none",
    ) -> None:
        own = tag_weights(model, tag).transforms()
        size, side = own.crop_size[0], own.resize_size[0]
        fed = Preprocess(size, tuple(own.mean), tuple(own.std), size / side, own.interpolation.value)
        preprocess = fed.instead(image_size=image_size, crop=crop, mean=mean, std=std, interpolation=interpolation)
        assert preprocess.image_size is not None
        with built_at(model, preprocess.image_size), torch_seed(0, "prior"):
            network = published_model(model, preprocess.image_size)
        fill_network(network, weights, trust, prefix, ignore, translation(model))
        super().__init__(network, preprocess, model, pool=pool)

    @staticmethod
    def sources(model: str, tag: str, **_: Any) -> list[str]:
        """Where torchvision has the weights of a tag from."""
        return [tag_weights(model, tag).url]


def translation(model: str) -> Callable[[State], State] | None:
    """torchvision's own way from published names to its own, where a model's file brings one: densenet does."""
    load = getattr(import_module(models.get_model_builder(model).__module__), "_load_state_dict", None)
    return (lambda state: Translated(state).by(load)) if load else None


class Translated:
    """Stands for the weights that torchvision loads, and for the model that it loads them into."""

    def __init__(self, state: State) -> None:
        self.state = state

    def by(self, load: Callable[[object, object, bool], None]) -> State:
        load(self, self, False)
        return self.state

    def get_state_dict(self, **_: object) -> State:
        return dict(self.state)

    def load_state_dict(self, state: State) -> None:
        self.state = state


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
            f"torchvision has no weights {tag} of {model}{did_you_mean(tag, names)}. Allowed: {', '.join(names)}"
        )
    return known[tag]
