"""The networks that are trained: a method on a backbone, and with it the matching of phase 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.config.runtime import Runtime
from rela_cli.config.schema import Config
from rela_cli.data.batches.tokens import TargetsWithCells
from rela_cli.distributed import ranks
from rela_cli.distributed.batch_norm import convert, is_known
from rela_cli.learners.build import build_backbone, feature_dim, try_out
from rela_cli.learners.maps import map_shape, maps_of, watched
from rela_cli.machine.precision import in_half, uses_bf16
from rela_cli.matching import Matching, TokenMatching
from rela_cli.methods.base import Average, Method, each
from rela_cli.numerics.randomness import torch_seed


@dataclass(frozen=True)
class Sizes:
    """What a trainee is built for."""

    image: int  # pixels a side
    target: int | None = None  # components that the representation is matched to; None: there is no phase 1
    classes: int | None = None  # None: there are no labels
    token: int | None = None  # components that each cell of the feature map is matched to, where they are


class Trainee(nn.Module):
    """Everything that is optimized, in one module: the method around its backbone, and the matching of phase 1."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        matching = config.matching
        backbone = build_backbone(config.learner, config.seed, sizes.image)
        width = feature_dim(backbone)
        with torch_seed(config.seed, "init", "heads"):
            known = {"backbone": backbone, "feature_dim": width, "classes": sizes.classes, "epochs": config.epochs}
            self.method: Method = instantiate(config.method, **known)
            self.matching = Matching(width, sizes.target, matching.transfer) if sizes.target else None
            self.tokens: TokenMatching | None = None
            if sizes.token:
                channels = map_shape(backbone, sizes.image)[0]
                self.tokens = TokenMatching(channels, sizes.token, matching.transfer)
        self.token_weight = matching.token_weight

    def forward(self, views: Sequence[Tensor], targets: Any, labels: Tensor | None = None) -> Tensor:
        """The matching loss where there are targets (phase 1), else the method's own (phase 2).

        targets: (B, k), a list of such for each view, or `TargetsWithCells`; None in phase 2.
        """
        if targets is not None:
            return MatchingModel(self)(views, targets)  # type: ignore[no-any-return]
        return self.method(views) if labels is None else self.method(views, labels)  # type: ignore[no-any-return]

    def averages(self) -> list[Average]:
        """The target networks."""
        return [module for module in self.modules() if isinstance(module, Average)]


def tried_out(config: Config, image_size: int, classes: int | None) -> nn.Module:
    """A backbone like the one that will be trained, after a step at the size of each view, and saved and loaded.

    Raises:
        ConfigError: it cannot do that.
    """
    trainee = Trainee(config, Sizes(image_size, classes=classes))
    sizes = {max(1, round(view.size_scale * image_size)) for view in trainee.method.views}
    try_out(trainee.method.backbone, config.learner, sorted({image_size, *sizes}, reverse=True))
    return trainee.method.backbone


def prepared_trainee(config: Config, sizes: Sizes, device: torch.device) -> Trainee:
    """A trainee on `device`, in the memory format, the precision and with the batch norms that it is trained with."""
    trainee = Trainee(config, sizes).to(device)
    trainee.to(memory_format=memory_format(trainee, device, sizes.image))
    prepare_networks(trainee, config.runtime, device)
    return trainee


def prepare_networks(trainee: Trainee, runtime: Runtime, device: torch.device) -> None:
    """Batch norms over all ranks; over ranks or on a GPU, views in one pass; on a GPU, networks in bf16."""
    groups = ranks.norm_groups(runtime.norm, runtime.devices)
    if ranks.world() > 1 or groups > 1 or (device.type == "cuda" and is_known(trainee)):
        take_views_together(trainee, groups)
    if uses_bf16(runtime, device):
        for network in trainee.method.networks().values():
            in_half(network, device, casts_at_once=runtime.compile == "off")  # a compiler does that itself


def take_views_together(trainee: Trainee, groups: int = 1) -> None:
    """Let all views go through a network in one pass; batch norms keep them apart, and so many groups of a batch."""
    convert(trainee, groups)
    trainee.method.one_pass = True
    for average in trainee.averages():
        average.one_pass = True


def compile_networks(trainee: Trainee, mode: str) -> None:
    """Compile the networks by torch.compile, unless the mode is "off". Count FLOPs before: it hides them."""
    if mode != "off":
        for network in trainee.method.networks().values():
            network.compile(mode=None if mode == "default" else mode)


def phase_module(trainee: Trainee, phase: int) -> nn.Module:
    """What a phase trains."""
    return MatchingModel(trainee) if phase == 1 else trainee.method


class MatchingModel(nn.Module):
    """What phase 1 trains, and nothing else: the backbone and the transfer layers of the matching."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        assert trainee.matching is not None
        self.backbone, self.matching = trainee.method.backbone, trainee.matching
        self.tokens, self.token_weight = trainee.tokens, trainee.token_weight
        self.one_pass = trainee.method.one_pass

    def forward(self, views: Sequence[Tensor], targets: Tensor | Sequence[Tensor] | TargetsWithCells) -> Tensor:
        """The matching loss of V views (B, 3, H, W) and targets (B, k), one or V of them, and of their cells."""
        if isinstance(targets, TargetsWithCells):
            return self.with_cells(views, targets)
        found = each(self.backbone, views, self.one_pass)
        if self.one_pass and isinstance(targets, Tensor):  # the mean over all views at once: half the kernels
            found, targets = [torch.cat(found)], targets.repeat(len(found), 1)
        return self.matching(found, targets)  # type: ignore[no-any-return]

    def with_cells(self, views: Sequence[Tensor], targets: TargetsWithCells) -> Tensor:
        """Both losses, of the representations and of the maps behind them, from the same passes; weighed."""
        assert self.tokens is not None
        with watched(self.backbone) as seen:
            found = each(self.backbone, views, self.one_pass)
        of_cells = self.tokens(maps_of(self.backbone, seen, len(views)), targets.cells)
        return (1 - self.token_weight) * self.matching(found, targets.pooled) + self.token_weight * of_cells  # type: ignore[no-any-return]


def memory_format(network: nn.Module, device: torch.device, size: int) -> torch.memory_format:
    """channels_last, 1.2 to 1.5 times faster on CPU and GPU alike, but where its backward pass crashes a CPU."""
    crashes = device.type == "cpu" and size > 32 and any(map(is_fragile, network.modules()))
    return torch.contiguous_format if crashes else torch.channels_last


def is_fragile(module: nn.Module) -> bool:
    """A strided 1x1 convolution of few channels.

    Its weight gradient in channels_last on 48 px and more ends in a segmentation fault (seen with torch 2.14.1 on an
    AMD EPYC with 4 and 8 channels; 16 channels, 32 px and a forward pass alone are fine).
    """
    if not isinstance(module, nn.Conv2d):
        return False
    return module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 16
