"""A trained model that we can build, from a file in whatever wrapper people have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rela_cli.config.schema import RANDOM
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.learners.resnet import resnet18, resnet34, resnet50, resnet101
from rela_cli.numerics.randomness import torch_seed
from rela_cli.priors import from_transformers
from rela_cli.priors.base import NetworkPrior, Preprocess, built_at
from rela_cli.priors.loading import WeightsFile, fill_network, load_whole, trimmed
from rela_cli.priors.reading import read_state
from rela_cli.store.notices import warn

FAMILY = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}  # the CIFAR family of He et al. 2015
OWN_RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
LIBRARY_NAMES = ("timm:NAME", "torchvision:NAME")
WIDTHS = {**dict.fromkeys(FAMILY, 16), **dict.fromkeys(OWN_RESNETS, 64)}  # where no file says otherwise
PROBE_SIZE = 32  # what a network without a size of its own is measured with


class Checkpoint(NetworkPrior):
    """A ResNet of ours (its width is read off the file), or `timm:NAME`, `torchvision:NAME`.

    Raises:
        ConfigError: unknown model, or weights whose keys do not fit it. MissingError: no readable file.
    """

    def __init__(
        self,
        model: str,
        weights: str,
        stem: str,
        image_size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bicubic",
        crop: float = 1.0,
        trust: bool = False,
        prefix: str | None = None,
        ignore: Sequence[str] = (),
        pool: str = "none",
        channels: str = "rgb",
    ) -> None:
        size, file = image_size or PROBE_SIZE, WeightsFile(weights, trust, prefix, ignore)
        network = filled_resnet(model, stem, file) if model in WIDTHS else filled_library_model(model, size, file)
        fed = Preprocess(image_size, mean, std, crop, interpolation, channels)
        super().__init__(network, fed, model, size, pool)


def filled_resnet(model: str, stem: str, file: WeightsFile) -> nn.Module:
    """A ResNet of the file's own width; every other difference is an error."""
    if file.weights == RANDOM:
        return resnet(model, stem, WIDTHS[model])
    path = Path(file.weights)
    keys = [name for name, _ in resnet(model, stem, width=4).named_parameters()]
    state = read_state(path, file.trust)
    if found := from_transformers.recognise(state, path, file.prefix):
        raise ConfigError(f"{path} is {found}: prior.model={model} is another network; {found.prior}")
    state = trimmed(state, keys, path, file.prefix)
    network = resnet(model, stem, len(state["conv1.weight"]) if "conv1.weight" in state else WIDTHS[model])
    load_whole(network, state, path, file.ignore)
    return network


def resnet(model: str, stem: str, width: int) -> nn.Module:
    """One of our own, untrained."""
    with torch_seed(0, "prior"):
        return cifar_resnet(FAMILY[model], width) if model in FAMILY else OWN_RESNETS[model](stem, width)


def filled_library_model(model: str, image_size: int, file: WeightsFile) -> nn.Module:
    """`timm:NAME` or `torchvision:NAME` with the weights of a file.

    Raises:
        ConfigError: neither of them, nor a ResNet of ours.
    """
    library, _, name = model.partition(":")
    if library == "timm" and name:
        from rela_cli.learners.timm import timm_model
        from rela_cli.priors.timm import translation

        with built_at(model, image_size), torch_seed(0, "prior"):
            network = timm_model(name, image_size, one_size=True)
        return fill_network(network, file, translation(network))
    if library == "torchvision" and name:
        from rela_cli.learners.torchvision import class_arguments, torchvision_model
        from rela_cli.priors.torchvision import translation as by_torchvision

        with built_at(model, image_size), torch_seed(0, "prior"):
            network = torchvision_model(name, image_size)
        if "transform_input" in class_arguments(name):
            warn(
                f"prior.model={model} is taken for a network of your own; with torchvision's published weights it "
                f"scales its images itself: for those say prior=torchvision prior.model={name} prior.weights=FILE"
            )
        return fill_network(network, file, by_torchvision(name))
    allowed = ", ".join((*WIDTHS, *LIBRARY_NAMES))
    raise ConfigError(f"unknown prior.model={model}{did_you_mean(model, WIDTHS)}. Allowed: {allowed}")
