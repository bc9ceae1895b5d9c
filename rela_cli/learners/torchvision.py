"""Any classifier of torchvision without its last linear layer, under torchvision's own parameter names."""

from __future__ import annotations

from torch import nn
from torchvision import models

from rela_cli.errors import ConfigError, nearest


def torchvision_model(model: str, image_size: int) -> nn.Module:
    """torchvision's `model`, untrained: (B, 3, S, S) -> (B, D). Vision transformers get positions for `image_size`.

    Raises:
        ConfigError: unknown to torchvision, with the nearest name.
    """
    check_name(model)
    options = {"image_size": image_size} if model.startswith("vit_") else {}
    return without_classifier(models.get_model(model, weights=None, **options))


def check_name(model: str) -> None:
    """Raises ConfigError for a name that torchvision does not know as an image classifier."""
    known = models.list_models(module=models)
    if model not in known:
        raise ConfigError(f"torchvision knows no model {model}{nearest(model, known)}. Allowed: {', '.join(known)}")


def without_classifier(network: nn.Module) -> nn.Module:
    """The same network with its last linear layer taken out: what comes before it is the representation."""
    name = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network
