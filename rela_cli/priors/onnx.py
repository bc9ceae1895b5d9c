"""A network in an ONNX file, by onnxruntime: no code of its model is needed, and no trust."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rela_cli.errors import ConfigError, MissingError, did_you_mean, first_line
from rela_cli.priors.base import NetworkPrior, Preprocess
from rela_cli.priors.pooling import Pooled
from rela_cli.store.notices import warn
from rela_cli.weights.onnx_file import check_installed, external_files

ONNX_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNSCALED = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # numbers from 0 to 255, as whole numbers are


class Session(nn.Module):
    """onnxruntime's session as a network: (B, 3, S, S) float -> its output, whatever layout and batch the file has."""

    def __init__(self, path: Path, output: str | None) -> None:
        super().__init__()
        self.path, self.sessions = path, {"cpu": open_session(path, ["CPUExecutionProvider"])}
        inputs, outputs = self.sessions["cpu"].get_inputs(), self.sessions["cpu"].get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ONNX_DTYPES:
            raise ConfigError(f"{path} does not take images alone: {listed(inputs)}")
        self.name, self.kind, shape = inputs[0].name, ONNX_DTYPES[inputs[0].type], inputs[0].shape
        self.is_nchw = layout(path, shape) == "NCHW"
        self.batch = shape[0] if isinstance(shape[0], int) else None
        sides = shape[2:] if self.is_nchw else shape[1:3]
        self.size = sides[0] if isinstance(sides[0], int) else None
        if sides[0] != sides[1] and all(isinstance(side, int) for side in sides):
            raise ConfigError(f"{path} takes images of {sides[0]}x{sides[1]} pixels, and priors see square ones")
        self.output = chosen_output(path, output, outputs)

    def train(self, mode: bool = True) -> Session:
        return self

    def forward(self, images: Tensor) -> Tensor:
        session = self.session_on(images.device)
        pixels = images if self.is_nchw else images.permute(0, 2, 3, 1)
        if self.kind == np.uint8:
            pixels = pixels.round().clamp(0, 255)
        arrays = [session.run([self.output], {self.name: part})[0] for part in self.parts(pixels.cpu().numpy())]
        found = np.concatenate(arrays)[: len(images)].astype(np.float32)
        return torch.from_numpy(found).to(images.device)

    def parts(self, pixels: np.ndarray) -> Iterator[np.ndarray]:
        """Of as many images as the file takes at a time; the last part is filled up with zeros."""
        pixels = np.ascontiguousarray(pixels, dtype=self.kind)
        size = self.batch or len(pixels)
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            lack = size - len(part) if self.batch else 0
            yield np.concatenate([part, np.zeros((lack, *part.shape[1:]), self.kind)]) if lack else part

    def session_on(self, device: torch.device) -> Any:
        """On the GPU where the images are there and this onnxruntime has it; else on the CPU."""
        import onnxruntime

        if device.type != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return self.sessions["cpu"]
        if "cuda" not in self.sessions:
            self.sessions["cuda"] = open_session(self.path, ["CUDAExecutionProvider", "CPUExecutionProvider"])
        return self.sessions["cuda"]


class Onnx(NetworkPrior):
    """A model (B, 3, S, S) or (B, S, S, 3), float or uint8, of any or of a fixed B; its output, pooled, is (B, D).

    Raises:
        ConfigError: no onnxruntime, or a model of another shape. MissingError: no readable file.
    """

    def __init__(
        self,
        weights: str,
        output: str | None,
        image_size: int | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        interpolation: str = "bicubic",
        crop: float = 1.0,
        pool: str = "none",
        channels: str = "rgb",
    ) -> None:
        path = Path(weights)
        session = Session(path, output)
        size = agreed_size(path, session.size, image_size)
        if session.kind == np.uint8 and (mean or std):
            raise ConfigError(f"{path} takes numbers from 0 to 255 as they are: leave prior.mean and prior.std out")
        own = UNSCALED if session.kind == np.uint8 else IMAGENET
        fed = Preprocess(size, mean or own[0], std or own[1], crop, interpolation, channels)
        network = Pooled(session, pool)
        network.feature_dim = width(path, network, size)  # type: ignore[assignment]
        super().__init__(network, fed)
        warn(f"{path.name}: onnxruntime does not say how many operations a model takes, so its FLOPs count as 0")


def open_session(path: Path, providers: list[str]) -> Any:
    """A session with as many threads as torch has.

    Raises:
        ConfigError: no onnxruntime. MissingError: a file that it cannot read.
    """
    check_installed()
    external_files(path)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own, of many kinds
        raise MissingError(f"{path} cannot be opened: {first_line(error)}") from error


def layout(path: Path, shape: list[Any]) -> str:
    """NCHW or NHWC, by the place of the 3.

    Raises:
        ConfigError: it is in neither place, or in both.
    """
    places = [name for name, place in (("NCHW", 1), ("NHWC", 3)) if shape[place] == 3]
    if len(places) != 1:
        raise ConfigError(f"{path} takes {shape}: it has to say 3 channels, as [N, 3, H, W] or as [N, H, W, 3]")
    return places[0]


def chosen_output(path: Path, asked: str | None, outputs: list[Any]) -> str:
    """The output to take.

    Raises:
        ConfigError: there are several and nobody says which, or none is called so.
    """
    names = [output.name for output in outputs]
    if asked is None and len(names) == 1:
        return str(names[0])
    if asked in names:
        return str(asked)
    what = f"has several outputs; say prior.output= one of {listed(outputs)}"
    if asked is not None:
        what = f"has no output {asked}{did_you_mean(asked, names)} (allowed: {listed(outputs)})"
    raise ConfigError(f"{path} {what}")


def listed(values: list[Any]) -> str:
    """Names and shapes of inputs or outputs."""
    return ", ".join(f"{value.name} {list(value.shape)}" for value in values)


def agreed_size(path: Path, own: int | None, asked: int | None) -> int:
    """Pixels a side.

    Raises:
        ConfigError: the file has one of its own and another is asked for, or nobody says.
    """
    if own and asked and own != asked:
        raise ConfigError(f"{path} takes images of {own} px, not prior.image_size={asked}: leave that out")
    if not (own or asked):
        raise ConfigError(f"{path} takes images of any size: say prior.image_size=224, or what it was trained at")
    return int(own or asked or 0)


def width(path: Path, network: nn.Module, size: int) -> int:
    """D of what two images give, (2, D).

    Raises:
        ConfigError: it gives something else, or cannot take such images.
    """
    try:
        shape = tuple(network(torch.zeros(2, 3, size, size)).shape)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # onnxruntime's own
        raise ConfigError(f"{path} cannot take two images of {size} px: {first_line(error)}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(f"{path} gives {shape} for two images, not (2, width)")
    return int(shape[1])
