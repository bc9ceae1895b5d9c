"""Image towers of open_clip: OpenAI's CLIP (Radford et al. 2021, arXiv 2103.00020) and its relatives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.model import resize_pos_embed
from torch import nn

from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.learners.build import refused
from rela_cli.numerics.randomness import torch_seed
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.loading import WeightsFile, fill_network
from rela_cli.priors.reading import State

# The text tower is not used and left out of every file we read; this one stands in for it while a model is built.
NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}


class OpenClip(NetworkPrior):
    """The image tower: (B, 3, H, W) uint8 -> (B, D), projected, not normalised.

    `tag` says whose weights they are, also when `weights` is a file: its activation (OpenAI's need QuickGELU, and
    load silently wrong without), mean, std and interpolation belong to them.

    Raises:
        ConfigError: unknown model or tag, or weights that do not fit. MissingError: no readable file.
    """

    def __init__(
        self,
        model: str,
        tag: str,
        weights: str,
        trust: bool = False,
        quick_gelu: bool | None = None,
        image_size: int | None = None,
        crop: float | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
    ) -> None:
        config: dict[str, Any] = tag_config(model, tag) if tag else {}
        quick = bool(config.get("quick_gelu")) if quick_gelu is None else quick_gelu
        size = f"{image_size} px" if image_size else "its own size"
        with refused(f"prior.model={model} cannot be built at {size}"), torch_seed(0, "prior"), quiet():
            clip = open_clip.create_model(
                model,
                force_quick_gelu=quick,
                force_image_size=image_size,
                text_cfg=dict(NO_TEXT),
                pretrained_text=False,
                device=torch.get_default_device(),
            )
        clip.visual.output_tokens = False  # CoCa's tower gives (pooled, tokens) otherwise
        fill_network(clip.visual, WeightsFile(weights, trust), lambda state: resized(state, clip))
        own: dict[str, Any] = open_clip.model.get_model_preprocess_cfg(clip) | config
        fed = Preprocess(image_side(clip.visual.image_size), own["mean"], own["std"], 1.0, own["interpolation"])
        asked = fed.instead(image_size=image_size, crop=crop, mean=mean, std=std, interpolation=interpolation)
        super().__init__(clip.visual, asked, model)

    @staticmethod
    def sources(model: str, tag: str, **_: Any) -> list[str]:
        """Where open_clip has the weights of a tag from; safetensors first."""
        config = tag_config(model, tag)
        repository, file = str(config.get("hf_hub", "")).rpartition("/")[::2]
        if repository:
            files = [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
            return [f"hf://{repository}/{name}" for name in files]
        return [config["url"]] if config.get("url") else []


def tag_config(model: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of a tag: mean, std, interpolation, quick_gelu, and where its weights are.

    Raises:
        ConfigError: unknown model, or a tag that this model has not got, with the nearest name.
    """
    models = open_clip.list_models()
    if model not in models:
        raise ConfigError(f"open_clip knows no model {model}{did_you_mean(model, models)} ({len(models)} names)")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ConfigError(
            f"open_clip has no weights {tag} of {model}{did_you_mean(tag, tags)}. Allowed: {', '.join(tags)}"
        )
    return found


def resized(state: State, clip: nn.Module) -> State:
    """Positions brought to the tower's grid by open_clip's own function, where the grid differs."""
    named = {f"visual.{key}": value for key, value in state.items()}
    resize_pos_embed(named, clip)
    return {key.removeprefix("visual."): value for key, value in named.items()}


def image_side(image_size: int | tuple[int, int]) -> int:
    """open_clip keeps sizes as numbers or as pairs."""
    return image_size if isinstance(image_size, int) else image_size[0]


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip warns that the model is random; it is not yet filled, and `fill` leaves no doubt."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
