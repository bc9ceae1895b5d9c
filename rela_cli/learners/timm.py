"""Any backbone of timm, under timm's own parameter names, pooled and without its classifier."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from rela_cli.errors import ConfigError, did_you_mean

RESIZABLE = {"vision_transformer", "deit"}  # timm's modules whose positions can be resampled on the way


def timm_model(model: str, image_size: int, one_size: bool = False, **options: Any) -> nn.Module:
    """timm's `model`, untrained: (B, 3, S, S) -> (B, D). Transformers get positions for `image_size`.

    With `one_size` they take no other, and images that patches do not fill are cut, as timm's own default has it.

    Raises:
        ConfigError: unknown to timm, with the nearest name.
    """
    check_name(model)
    options |= timm_arguments(model, image_size, one_size)
    network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **options)
    network.classifiers = classifiers(model)  # type: ignore[assignment]
    return network


def timm_arguments(model: str, image_size: int, one_size: bool = False) -> dict[str, Any]:
    """What timm.create_model is asked for, besides a model's own options, so that it takes images of this size."""
    asked: dict[str, Any] = {"img_size": image_size} if has_fixed_size(model) else {}
    if not one_size and timm.models.is_model_in_modules(model, RESIZABLE):
        asked |= {"dynamic_img_size": True, "dynamic_img_pad": True}  # views of other sizes: DINO's local crops
    return asked


def vit(model: str, patch_size: int, image_size: int) -> nn.Module:
    """A plain vision transformer with a patch size of its own.

    Raises:
        ConfigError: images that patches do not fill.
    """
    if image_size % patch_size:
        fit = ", ".join(str(p) for p in range(2, image_size) if image_size % p == 0)
        raise ConfigError(
            f"learner.patch_size={patch_size} does not divide images of {image_size} px; "
            + (f"these do: {fit}" if fit else "choose another dataset.image_size")
        )
    return timm_model(model, image_size, patch_size=patch_size)


def check_name(model: str) -> None:
    """Raises ConfigError for a name that timm does not know."""
    if not timm.is_model(model):
        known = timm.list_models()
        raise ConfigError(
            f"timm {timm.__version__} knows no model {model}{did_you_mean(model, known)} ({len(known)} names: "
            f'python -c "import timm; print(*timm.list_models())")'
        )


def has_fixed_size(model: str) -> bool:
    """Whether a model is built for one image size, as transformers with learned positions are."""
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def classifiers(model: str) -> tuple[str, ...]:
    """The modules that timm calls classifiers of a model; a distilled one has two."""
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    named = config.classifier if config else None
    return (named,) if isinstance(named, str) else tuple(named or ())
