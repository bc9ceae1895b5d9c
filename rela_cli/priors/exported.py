"""A whole program from a file, .pt2 (torch.export) or TorchScript: no code of its model is needed, but trust is.

Both kinds of file hold the device of their export as a constant wherever the model makes a tensor (`arange`); it is
changed together with the weights' place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from rela_cli.errors import ConfigError, MissingError, first_line
from rela_cli.learners.build import refused, width_of
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.pooling import Pooled
from rela_cli.priors.reading import library_message, load_script
from rela_cli.terminal import plural
from rela_cli.weights.kinds import ensure_intact, kind_of

TRIED_BATCHES = (1, 2, 5)  # numbers of images that a program is tried with: many are fixed to the one of their export


class Program(nn.Module):
    """Runs as it was exported: it has no training mode to leave, and torch refuses to ask it for one."""

    def __init__(self, program: ExportedProgram | torch.jit.ScriptModule) -> None:
        super().__init__()
        self.exported = program if isinstance(program, ExportedProgram) else None
        self.program = program.module() if isinstance(program, ExportedProgram) else program
        self.device = torch.device("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Program:
        """What `.to(device)` comes to, for this and for every module that holds it."""
        device = fn(torch.empty(0, device=self.device)).device
        if device == self.device:
            super()._apply(fn, recurse)
        elif self.exported is not None:
            self.exported = move_to_device_pass(self.exported, device)
            self.program = self.exported.module().requires_grad_(False)
        else:
            self.program = script_on(self.program, device)
        self.device = device
        return self

    def train(self, mode: bool = True) -> Program:
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.program(images)  # type: ignore[no-any-return]


def script_on(script: nn.Module, device: torch.device) -> torch.jit.ScriptModule:
    """A script with weights on `device`, which makes its tensors there too; a copy, since one that ran is compiled."""
    moved = torch.jit.load(BytesIO(script.save_to_buffer()), map_location=device).eval()  # type: ignore[operator, no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have people export otherwise
        made = torch.jit.trace(lambda: torch.empty(0, device=device), ())  # type: ignore[no-untyped-call]
    (constant,) = (node for node in devices_in(made.graph) if node.s("value") == str(device))
    compiled: list[Any] = [module._c for module in moved.modules()]
    for module in compiled:
        for name in module._method_names():
            for node in devices_in(module._get_method(name).graph):
                node.copyAttributes(constant)
    return moved  # type: ignore[no-any-return]


def devices_in(graph: Any) -> Iterator[Any]:
    """The nodes of a script's graph that are a device."""
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        if node.output().type().kind() == "DeviceObjType":
            yield node


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
    for count in TRIED_BATCHES:
        try:
            with torch.inference_mode():
                found = program(torch.zeros(count, 3, image_size, image_size))
        except ConfigError as error:
            raise ConfigError(f"{weights}: {error}") from error
        except Exception as error:  # the program's own
            raise ConfigError(
                f"{weights} cannot take {plural(count, 'image')} of {image_size} px: {first_line(error)}. Say another "
                f"prior.image_size=, or export it in eval mode with a batch dimension of any size"
            ) from error
        with refused(f"{weights} is no network that gives features"):
            width = width_of(found, count)
    return width


def open_program(path: Path) -> ExportedProgram | torch.jit.ScriptModule:
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
        return torch.export.load(path)
    except Exception as error:  # torch's own, of many kinds
        raise MissingError(f"{path} cannot be opened: {library_message(error)}") from error
