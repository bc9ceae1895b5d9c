"""What is exported: the backbone of a finished run, and what it wants to be fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rela_cli.config.schema import Part
from rela_cli.store.files import Facts
from rela_cli.store.integrity import digest
from rela_cli.store.outputs import RunFolder
from rela_cli.weights.run_folder import backbone_name, decoded_size, run_config, run_facts

if TYPE_CHECKING:
    import torch

RESNET_MODULE = "rela_cli.learners.resnet."
TORCHVISION = "rela_cli.learners.torchvision.torchvision_model"
TIMM = "rela_cli.learners.timm."


@dataclass(frozen=True)
class Backbone:
    """The network `network` (online or target) of a finished run; `allow` names packages its config may call.

    `licence` is what the user says its weights may be used under; None: nothing.
    """

    run: RunFolder
    network: str
    allow: Sequence[str] = ()
    licence: str | None = None

    @cached_property
    def learner(self) -> Part:
        """How the network was built."""
        return Part.from_tree(run_config(self.run.folder)["learner"])

    @property
    def title(self) -> str:
        """What people call it: learner=resnet18 (stem cifar, width 8)."""
        options = ", ".join(f"{key} {value}" for key, value in self.learner.options.items())
        return f"learner={self.learner.name}" + (f" ({options})" if options else "")

    @cached_property
    def preprocessing(self) -> Facts:
        """The shorter side is brought to `resize` pixels, the middle `size` is kept, then mean and std of [0, 1]."""
        facts = run_facts(self.run.folder)
        return {
            "resize": decoded_size(self.run.folder),
            "size": int(facts["image_size"]),
            "interpolation": "bicubic",
            "mean": [float(value) for value in facts["mean"]],
            "std": [float(value) for value in facts["std"]],
        }

    @property
    def sha256(self) -> str:
        """The hash of the file with its weights."""
        return digest(self.run.folder / backbone_name(self.network))

    @cached_property
    def module(self) -> torch.nn.Module:
        """The network itself, in eval mode: (B, 3, S, S) float, normalised -> (B, D)."""
        from rela_cli.learners.build import load_backbone

        return load_backbone(self.run.folder, self.network, self.allow)

    @cached_property
    def width(self) -> int:
        """Features D."""
        from rela_cli.learners.build import feature_dim

        return feature_dim(self.module)

    @cached_property
    def state(self) -> dict[str, Any]:
        """Its weights, each tensor in memory of its own."""
        from rela_cli.learners.build import saved_state

        return saved_state(self.module)


def is_torchvision(learner: Part) -> bool:
    """Whether torchvision's own classes can build it."""
    return learner.target.startswith(RESNET_MODULE) or learner.target == TORCHVISION


def is_timm(learner: Part) -> bool:
    """Whether timm.create_model can build it; timm's ResNets have neither a CIFAR stem nor another width."""
    plain = {"stem": "imagenet", "width": 64}
    return learner.target.startswith(TIMM) or (learner.target.startswith(RESNET_MODULE) and learner.options == plain)
