"""The learner's backbone: fresh, as the run's seed makes it from the learner's yaml, or as a finished run left it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError, MissingError, RelaError, first_line
from rela_cli.numerics.randomness import torch_seed
from rela_cli.terminal import plural
from rela_cli.weights.run_folder import backbone_name, check_backbone, run_config, trained

IMAGE_SIZE = 32  # for runs by versions that did not write theirs down; their learners take any size


def build_backbone(learner: Part, seed: int, image_size: int) -> nn.Module:
    """A fresh backbone, the same for the same `seed` whatever else was drawn before; its `feature_dim` is measured.

    Raises:
        ConfigError: it cannot be built, or cannot take images of this size.
    """
    with torch_seed(seed, "init", "learner"), refused(f"learner={learner.name} cannot be built at {image_size} px"):
        backbone: nn.Module = instantiate(learner, image_size=image_size)
    with refused(f"learner={learner.name} cannot take images of {image_size} px"):
        backbone.feature_dim = measured_width(backbone, image_size)  # type: ignore[assignment]
    return backbone


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever a library raises inside is a ConfigError that begins with `what`; errors of our own pass."""
    try:
        yield
    except RelaError:
        raise
    except Exception as error:  # every library has its own
        raise ConfigError(f"{what}: {first_line(error)}") from error


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Inside, a network is in eval mode; afterwards in its own."""
    was_training = network.training
    try:
        yield network.eval()
    finally:
        network.train(was_training)


def measured_width(network: nn.Module, image_size: int, dtype: torch.dtype | None = None) -> int:
    """Width D of what a network makes of one image: (1, 3, S, S) -> (1, D). Leaves the network as it was.

    Raises:
        ValueError: it gives something else than one vector an image.
    """
    device = next((parameter.device for parameter in network.parameters()), None)
    with torch.no_grad(), in_eval_mode(network):
        return width_of(network(torch.zeros(1, 3, image_size, image_size, device=device, dtype=dtype)), 1)


def width_of(found: Any, images: int) -> int:
    """D of what a network made of some images, (images, D).

    Raises:
        ValueError: it is something else than one vector an image.
    """
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != images:
        shape = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(f"it gives {shape} for {plural(images, 'image')}, not ({images}, width)")
    return int(found.shape[1])


def try_out(backbone: nn.Module, learner: Part, sizes: Iterable[int]) -> None:
    """What a run asks of a learner, before any work: to be saved and loaded, and a step of training at each size.

    The weights stay as they are, running statistics do not.

    Raises:
        ConfigError: it cannot do that; in one sentence that names the learner.
    """
    with refused(f"learner={learner.name} cannot be saved and loaded again"):
        load_state(backbone, safetensors.torch.load(safetensors.torch.save(saved_state(backbone))))
    for size in sizes:
        with refused(f"learner={learner.name} cannot be trained on views of {size} px"), torch_seed(0, "try"):
            take_step(backbone, size)


def take_step(network: nn.Module, image_size: int) -> None:
    """One forward and backward pass of two images in training mode.

    Raises:
        ValueError: it gives something else than one vector an image, or nothing in it can be trained.
    """
    found = network.train()(torch.randn(2, 3, image_size, image_size))
    width_of(found, 2)
    found.square().sum().backward()


def saved_state(network: nn.Module) -> dict[str, Tensor]:
    """What a file keeps of a network, each tensor in memory of its own: a parameter may have several names.

    Raises:
        TypeError: something in it is no tensor.
    """
    state = network.state_dict()
    if odd := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise TypeError(f"{odd[0]} in its state is no tensor")
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `saved_state` took, all of it. A file has no place for the versions of the modules' layouts.

    Raises:
        RuntimeError: keys or shapes that differ.
    """
    versioned: Any = OrderedDict(state)
    versioned._metadata = getattr(network.state_dict(), "_metadata", None)
    network.load_state_dict(versioned)


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
    tree = run_config(folder)
    learner = Part.from_tree(tree["learner"])
    if foreign := learner.foreign((*allow, "rela_cli")):
        raise ConfigError(f"{folder}/config.yaml wants to run {foreign[0]}; if you trust it, allow its package")
    backbone = build_backbone(learner, tree["seed"], trained(folder).get("image_size") or IMAGE_SIZE)
    load_state(backbone, load_file(weights))
    return backbone.eval()


def feature_dim(backbone: nn.Module) -> int:
    """Width D of a backbone's representation (B, D)."""
    return int(backbone.feature_dim)  # type: ignore[arg-type]
