"""Any pretrained classifier of torchvision, with the preprocessing that belongs to its weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from torchvision import models

from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.learners.torchvision import check_name, published_model
from rela_cli.priors.base import Preprocess
from rela_cli.priors.library import LibraryPrior
from rela_cli.priors.reading import State


class TorchvisionPrior(LibraryPrior):
    """torchvision's `model`; `tag` is IMAGENET1K_V1, ..., or DEFAULT."""

    def published_preprocess(self, model: str, tag: str) -> Preprocess:
        own = tag_weights(model, tag).transforms()
        size, side = own.crop_size[0], own.resize_size[0]
        return Preprocess(size, tuple(own.mean), tuple(own.std), size / side, own.interpolation.value)

    def build(self, model: str, image_size: int) -> nn.Module:
        return published_model(model, image_size)

    def translation(self, model: str, network: nn.Module) -> Callable[[State], State] | None:
        return translation(model)

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
