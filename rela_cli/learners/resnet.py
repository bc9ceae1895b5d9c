"""torchvision's ResNets with a CIFAR stem and a width, under torchvision's own parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv


class ResNet(tv.ResNet):
    """A ResNet trunk: (B, 3, H, W) -> (B, feature_dim).

    stem "cifar" is a 3x3 stride-1 convolution and no max-pool (He et al. 2015, section 4.2, as the SSL field
    uses it); width 64 is torchvision's. There is no fc: state_dict has torchvision's keys without it.
    """

    def __init__(self, block: type[tv.BasicBlock | tv.Bottleneck], layers: list[int], stem: str, width: int) -> None:
        with torch.device("meta"):  # torchvision fixes the width at 64, so all of its layers are replaced below
            super().__init__(block, [1, 1, 1, 1])
        self.inplanes = width
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)  # type: ignore[assignment]
        for i, count in enumerate(layers):
            layer = self._make_layer(block, width * 2**i, count, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", layer)
        self.fc = nn.Identity()  # type: ignore[assignment]
        self.feature_dim = 8 * width * block.expansion
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)  # type: ignore[no-any-return]


def initialize(network: nn.Module) -> None:
    """torchvision's own initialisation: Kaiming fan-out for convolutions, 1 and 0 for batch norms."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def resnet18(stem: str, width: int) -> ResNet:
    """ResNet-18, 8 * width features."""
    return ResNet(tv.BasicBlock, [2, 2, 2, 2], stem, width)


def resnet34(stem: str, width: int) -> ResNet:
    """ResNet-34, 8 * width features."""
    return ResNet(tv.BasicBlock, [3, 4, 6, 3], stem, width)


def resnet50(stem: str, width: int) -> ResNet:
    """ResNet-50, 32 * width features."""
    return ResNet(tv.Bottleneck, [3, 4, 6, 3], stem, width)


def resnet101(stem: str, width: int) -> ResNet:
    """ResNet-101, 32 * width features."""
    return ResNet(tv.Bottleneck, [3, 4, 23, 3], stem, width)
