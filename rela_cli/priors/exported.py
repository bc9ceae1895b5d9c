"""A whole program from a file, .pt2 (torch.export) or TorchScript: no code of its model is needed, but trust is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rela_cli.errors import ConfigError, MissingError
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.loading import load_script
from rela_cli.weights import kind_of


class Program(nn.Module):
    """Runs as it was exported: it has no training mode to leave, and torch refuses to ask it for one."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> Program:
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.program(images)  # type: ignore[no-any-return]


class Exported(NetworkPrior):
    """A program (B, 3, H, W) -> (B, D) for any B, exported in eval mode.

    Raises:
        ConfigError: no trust given, or a program of another shape. MissingError: no readable file.
    """

    def __init__(
        self,
        weights: str,
        trust: bool,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bicubic",
        crop: float = 1.0,
    ) -> None:
        if not trust:
            raise ConfigError(f"{weights} can run code that is in it; say prior.trust=true if you trust it")
        program = Program(open_program(Path(weights)))
        try:
            shape = tuple(program(torch.zeros(2, 3, image_size, image_size)).shape)
        except Exception as error:  # the program's own
            raise ConfigError(
                f"{weights} cannot take two images of {image_size} px: {str(error).splitlines()[0]}. "
                f"Export it with a batch dimension of any size"
            ) from error
        if len(shape) != 2:
            raise ConfigError(f"{weights} gives {shape} for two images, not (2, width)")
        program.feature_dim = shape[1]  # type: ignore[assignment]
        super().__init__(program, Preprocess(image_size, mean, std, crop, interpolation))


def open_program(path: Path) -> nn.Module:
    """The program in a file.

    Raises:
        ConfigError: weights without a program. MissingError: a damaged file.
    """
    kind = kind_of(path)
    if kind not in ("script", "export"):
        raise ConfigError(f"{path} holds weights without a program; say prior=checkpoint prior.model=NAME")
    try:
        if kind == "script":
            return load_script(path).eval()  # type: ignore[no-any-return]
        return torch.export.load(path).module()
    except Exception as error:  # torch's own, of many kinds
        raise MissingError(f"{path} cannot be opened: {str(error).splitlines()[0]}") from error
