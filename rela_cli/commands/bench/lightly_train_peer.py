"""Distillation by lightly-train, run by the python of its own environment: `python -m ... '{"images": ...}'`.

The teacher goes in as its method takes foreign networks: with `forward_features` and `forward_pool`. All other settings
are its defaults, but for the image size, the statistics of the images and the learning rate.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.learners.resnet import ResNet, resnet18

TEACHER_WIDTH = 16  # of the ResNet-18 behind prior=embedded
SIDE = 32  # pixels
REFERENCE_BATCH = 1536  # of lightly-train's method


def learner(width: int) -> ResNet:
    """(B, 3, S, S) -> (B, 8 * width)."""
    return resnet18("cifar", width)


class Wrapped(nn.Module):
    """One of our ResNets, as lightly-train asks for networks that it does not know."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network

    def get_model(self) -> nn.Module:
        """What is exported."""
        return self.network

    def feature_dim(self) -> int:
        """Channels of the map."""
        return self.network.feature_dim

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> the map before the mean, (B, C, H, W)."""
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return {"features": net.layer4(net.layer3(net.layer2(net.layer1(x))))}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the map, (B, C, 1, 1)."""
        return {"pooled_features": x["features"].mean((2, 3), keepdim=True)}


def main(request: dict[str, Any]) -> None:
    """Train, and export to out/exported_models/exported_last.pt."""
    teacher = learner(TEACHER_WIDTH)
    teacher.load_state_dict(torch.load(request["teacher"], weights_only=True))
    scale = (request["batch"] / REFERENCE_BATCH) ** 0.5  # by which it multiplies the rate
    torch.manual_seed(request["seed"])
    import_module("lightly_train").pretrain(
        out=request["out"],
        data=request["images"],
        model=Wrapped(learner(request["width"])),
        method="distillation",
        method_args={"teacher": Wrapped(teacher.eval())},
        epochs=request["epochs"],
        batch_size=request["batch"],
        num_workers=0,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        seed=request["seed"],
        optim="adamw",
        optim_args={"lr": request["lr"] / scale},
        transform_args={
            "image_size": (SIDE, SIDE),
            "normalize": {"mean": request["mean"], "std": request["std"]},
        },
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
