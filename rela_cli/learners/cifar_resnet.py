"""The 6n+2 CIFAR family of He et al. 2015, section 4.2: three stages, option-A shortcuts, widths w, 2w, 4w."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.errors import ConfigError
from rela_cli.learners.resnet import initialize


class Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut subsamples and pads with zero channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.pad = stride, (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """(B, 3, H, W) -> (B, 4 * width). Keys as in the widely used public checkpoints, without `linear`."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self.stage(width, width, blocks, 1)
        self.layer2 = self.stage(width, 2 * width, blocks, 2)
        self.layer3 = self.stage(2 * width, 4 * width, blocks, 2)
        self.feature_dim = 4 * width
        initialize(self)

    @staticmethod
    def stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            Block(channels_in, channels, stride), *(Block(channels, channels, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return x.mean((2, 3))


def cifar_resnet(depth: int, width: int) -> CifarResNet:
    """A CIFAR ResNet of `depth` layers.

    Raises:
        ConfigError: when the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ConfigError(f"depth={depth} is not of the 6n+2 family: 20, 32, 44, 56, 110, ...")
    return CifarResNet((depth - 2) // 6, width)
