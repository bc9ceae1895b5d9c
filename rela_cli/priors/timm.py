"""Any pretrained model of timm, with the preprocessing that timm knows for its weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import timm
from torch import nn

from rela_cli.learners.timm import check_name, timm_model
from rela_cli.priors.base import Preprocess
from rela_cli.priors.library import LibraryPrior
from rela_cli.priors.reading import State

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # what a timm repository on the hub holds


class TimmPrior(LibraryPrior):
    """timm's `model`."""

    def published_preprocess(self, model: str, tag: str) -> Preprocess:
        return own_preprocess(model)

    def build(self, model: str, image_size: int) -> nn.Module:
        return timm_model(model, image_size, one_size=True)

    def translation(self, model: str, network: nn.Module) -> Callable[[State], State] | None:
        return translation(network)

    @staticmethod
    def sources(model: str, **_: Any) -> list[str]:
        """Where timm has the model's weights from; safetensors first."""
        check_name(model)
        config = timm.get_pretrained_cfg(model, allow_unregistered=True)
        if config is None or not config.has_weights:
            return []
        if config.hf_hub_id:
            files = [config.hf_hub_filename] if config.hf_hub_filename else HUB_FILES
            return [f"hf://{config.hf_hub_id}/{file}" for file in files]
        return [config.url] if config.url else []


def own_preprocess(model: str) -> Preprocess:
    """What timm's evaluation transform of the model does; without a size where its images are not square.

    Raises:
        ConfigError: unknown to timm, with the nearest name.
    """
    check_name(model)
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    height, width = data["input_size"][-2:]
    return Preprocess(
        height if height == width else None, data["mean"], data["std"], data["crop_pct"], data["interpolation"]
    )


def translation(network: nn.Module) -> Callable[[State], State] | None:
    """timm's own way from the names and sizes that the authors published to its own; each model file brings one."""
    translate = getattr(import_module(type(network).__module__), "checkpoint_filter_fn", None)
    return (lambda state: dict(translate(state, network))) if translate else None
