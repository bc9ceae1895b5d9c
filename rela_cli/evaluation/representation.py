"""Representations of a frozen backbone, and two measures that need no training: kNN and effective rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rela_cli.data.batches.cache import ImageStats
from rela_cli.data.batches.loader import Images, centre, in_blocks


def representations(backbone: nn.Module, images: Images, data: ImageStats, block_size: int) -> Tensor:
    """(N, 3, H, W) uint8, of which the middle is shown -> (N, D) float32 on the CPU, in eval mode.

    The backbone's own mode is put back.
    """
    device = next(backbone.parameters()).device
    mean, std = data.mean.to(device).view(1, 3, 1, 1), data.std.to(device).view(1, 3, 1, 1)
    was_training = backbone.training
    backbone.eval()
    try:
        shown = lambda x: (centre(x, data.size).float() / 255 - mean) / std  # noqa: E731
        return torch.cat(list(in_blocks(lambda x: backbone(shown(x)), images, block_size, device))).float()
    finally:
        backbone.train(was_training)
