"""Any classifier of torchvision without its last layer, under torchvision's own parameter names."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import torch
from torch import nn
from torchvision import models

from rela_cli.errors import ConfigError, did_you_mean


def torchvision_model(model: str, image_size: int) -> nn.Module:
    """torchvision's `model`, untrained: (B, 3, S, S) -> (B, D). Vision transformers get positions for `image_size`.

    Raises:
        ConfigError: unknown to torchvision, with the nearest name.
    """
    return built_network(model, image_size=image_size)


def published_model(model: str, image_size: int) -> nn.Module:
    """torchvision's `model` with the arguments that torchvision sets when it loads published weights.

    googlenet and inception_v3 scale their input by themselves then; a test looks through all models for others.
    """
    return built_network(model, image_size=image_size, transform_input=True)


def built_network(model: str, **options: Any) -> nn.Module:
    """torchvision's `model` without classifiers, whose names it keeps, with those of `options` that it knows."""
    check_name(model)
    options = known_options(model, **options)
    aside = auxiliary(model) if "aux_logits" in options else ()
    network = models.get_model(model, weights=None, **options)
    last = last_layer(network)  # what comes before it is the representation
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    network.classifiers = (last, *aside)  # type: ignore[assignment]
    return network


def known_options(model: str, **options: Any) -> dict[str, Any]:
    """The options that a model knows, and those that we always set."""
    takes = class_arguments(model)
    asked = {"init_weights": True, **options}  # the default of all, and said so by two of them at each call
    asked |= {"aux_logits": False}  # no further classifiers, which are for training with labels
    return {key: value for key, value in asked.items() if key in takes}


def auxiliary(model: str) -> tuple[str, ...]:
    """The modules of a model that are there with `aux_logits` alone."""
    with torch.device("meta"):
        whole, without = (models.get_model(model, aux_logits=wanted, init_weights=False) for wanted in (True, False))
    return tuple(name for name, _ in whole.named_children() if getattr(without, name) is None)


def class_arguments(model: str) -> frozenset[str]:
    """What the class of a model takes; torchvision's builders take these as keywords."""
    kind = get_type_hints(models.get_model_builder(model))["return"]
    return frozenset(inspect.signature(kind).parameters)


def check_name(model: str) -> None:
    """Raises ConfigError for a name that torchvision does not know as an image classifier."""
    known = models.list_models(module=models)
    if model not in known:
        raise ConfigError(
            f"torchvision knows no model {model}{did_you_mean(model, known)}. Allowed: {', '.join(known)}"
        )


def last_layer(network: nn.Module) -> str:
    """The name of the last layer that has weights: a linear one, or squeezenet's 1x1 convolution."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
