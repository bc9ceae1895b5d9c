"""A trained model that we can build, from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rela_cli.data.cache import ImageStats
from rela_cli.errors import ConfigError, MissingError, nearest
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.priors.base import NetworkPrior

DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


class Checkpoint(NetworkPrior):
    """A 6n+2 CIFAR ResNet; `classify` applies the classifier that came with the weights.

    Raises:
        ConfigError: unknown model, or weights whose keys do not fit it. MissingError: no readable file.
    """

    def __init__(
        self,
        model: str,
        weights: str,
        image_size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
        data: ImageStats | None = None,
    ) -> None:
        if model not in DEPTHS:
            raise ConfigError(f"unknown prior.model={model}{nearest(model, DEPTHS)}. Allowed: {', '.join(DEPTHS)}")
        super().__init__(cifar_resnet(DEPTHS[model], width=16), torch.tensor(mean), torch.tensor(std), image_size)
        self.linear = nn.Linear(self.feature_dim, classes)
        self.load_strictly(read_weights(Path(weights).expanduser()), weights)

    def load_strictly(self, state: dict[str, Tensor], source: str) -> None:
        """All keys or none: a partial load would be a random network in disguise."""
        network = nn.Module()
        for name, module in (*self.backbone.named_children(), ("linear", self.linear)):
            network.add_module(name, module)
        try:
            network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=True)
        except RuntimeError as error:
            raise ConfigError(f"prior.weights={source} does not fit prior.model: {error}") from error

    def classify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, classes) logits, to check that preprocessing is right."""
        return self.linear(self(images))  # type: ignore[no-any-return]


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a .pth that holds tensors only (nothing is unpickled).

    Raises:
        MissingError: no such file, or not in either form; the first bytes are looked at to say what it is.
    """
    if not path.is_file():
        raise MissingError(f"prior.weights={path} does not exist")
    head = path.open("rb").read(64)
    for start, what in ((b"version https://git-lfs", "a git-lfs pointer, not the file itself"), (b"<", "a web page")):
        if head.startswith(start):
            raise MissingError(f"prior.weights={path} is {what}")
    try:
        return load_tensors(path)
    except Exception as error:  # every library has its own
        raise MissingError(f"prior.weights={path} cannot be read: {error or type(error).__name__}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by its suffix; a `state_dict` wrapper is taken off."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return dict(state.get("state_dict", state))
