"""A whole program from a file, .pt2 (torch.export) or TorchScript: no code of its model is needed, but trust is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rela_cli.errors import ConfigError, MissingError
from rela_cli.learners.build import counted, first_line, refused, width_of
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.pooling import Pooled
from rela_cli.priors.reading import load_script, reason
from rela_cli.weights.kinds import ensure_intact, kind_of

BATCHES = (1, 2, 5)  # numbers of images that a program is tried with: many are fixed to the one of their export


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
        pool: str = "none",
        channels: str = "rgb",
    ) -> None:
        if not trust:
            raise ConfigError(f"{weights} can run code that is in it; say prior.trust=true if you trust it")
        program = Pooled(Program(open_program(Path(weights))).requires_grad_(False), pool)
        program.feature_dim = width_given(program, weights, image_size)  # type: ignore[assignment]
        super().__init__(program, Preprocess(image_size, mean, std, crop, interpolation, channels))


def width_given(program: nn.Module, weights: str, image_size: int) -> int:
    """The width of a program's features, as extraction asks for them: without gradient, any number of images.

    Raises:
        ConfigError: it takes images of another size, or a certain number of them, or gives something else.
    """
    for count in BATCHES:
        try:
            with torch.inference_mode():
                found = program(torch.zeros(count, 3, image_size, image_size))
        except ConfigError as error:
            raise ConfigError(f"{weights}: {error}") from error
        except Exception as error:  # the program's own
            raise ConfigError(
                f"{weights} cannot take {counted(count)} of {image_size} px: {first_line(error)}. Say another "
                f"prior.image_size=, or export it in eval mode with a batch dimension of any size"
            ) from error
        with refused(f"{weights} is no network that gives features"):
            width = width_of(found, count)
    return width


def open_program(path: Path) -> nn.Module:
    """The program in a file.

    Raises:
        ConfigError: weights without a program. MissingError: a damaged file.
    """
    kind = kind_of(path)
    if kind not in ("script", "export"):
        raise ConfigError(f"{path} holds weights without a program; say prior=checkpoint prior.model=NAME")
    ensure_intact(path)
    try:
        if kind == "script":
            return load_script(path).eval()  # type: ignore[no-any-return]
        return torch.export.load(path).module()
    except Exception as error:  # torch's own, of many kinds
        raise MissingError(f"{path} cannot be opened: {reason(error)}") from error
