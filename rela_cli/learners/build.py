"""The learner's backbone: fresh, as the run's seed makes it from the learner's yaml, or as a finished run left it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from rela_cli.config import Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.parts import build
from rela_cli.streams import seeded
from rela_cli.weights import backbone_name, check_backbone, trained

IMAGE_SIZE = 32  # for runs by versions that did not write theirs down; their learners take any size


def build_backbone(learner: Part, seed: int, image_size: int) -> nn.Module:
    """A fresh backbone, the same for the same `seed` whatever else was drawn before; its `feature_dim` is measured.

    Raises:
        ConfigError: it cannot be built, or cannot take images of this size.
    """
    with seeded(seed, "init", "learner"):
        try:
            backbone: nn.Module = build(learner, image_size=image_size)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # the libraries' own
            raise ConfigError(
                f"learner={learner.name} cannot be built at {image_size} px: {_first_line(error)}"
            ) from error
    try:
        backbone.feature_dim = measured(backbone, image_size)  # type: ignore[assignment]
    except (AssertionError, RuntimeError, IndexError, ValueError) as error:
        raise ConfigError(
            f"learner={learner.name} cannot take images of {image_size} px: {_first_line(error)}"
        ) from error
    return backbone


def measured(network: nn.Module, image_size: int) -> int:
    """Width D of what a network makes of one image: (1, 3, S, S) -> (1, D). Leaves the network as it was.

    Raises:
        ValueError: it gives something else than one vector an image.
    """
    was_training = network.training
    parameter = next(network.parameters())
    with torch.no_grad():
        found = network.eval()(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    network.train(was_training)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"it gives {shape} for one image, not (1, width)")
    return int(found.shape[1])


def load_backbone(folder: str | Path, network: str = "online", allow: Sequence[str] = ()) -> nn.Module:
    """The backbone of a finished run, in eval mode: (B, 3, H, W) float, normalised -> (B, feature_dim).

    `network` "target" is the target network of methods that have one; `allow` names packages besides rela whose
    classes the run's config.yaml may call.

    Raises:
        MissingError: the folder is not a run, or has no such network. ConfigError: a class from elsewhere.
    """
    folder = Path(folder)
    weights = folder / backbone_name(network)
    if not weights.is_file():
        raise MissingError(f"{weights} does not exist; a finished run's folder has one")
    check_backbone(folder, network)
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    learner = Part.from_tree(tree["learner"])
    if foreign := learner.foreign((*allow, "rela_cli")):
        raise ConfigError(f"{folder}/config.yaml wants to run {foreign[0]}; if you trust it, allow its package")
    backbone = build_backbone(learner, tree["seed"], trained(folder).get("image_size") or IMAGE_SIZE)
    backbone.load_state_dict(load_file(weights))
    return backbone.eval()


def feature_dim(backbone: nn.Module) -> int:
    """Width D of a backbone's representation (B, D)."""
    return int(backbone.feature_dim)  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
