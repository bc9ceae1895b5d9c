"""Representations of a frozen backbone, put together block by block where they are wanted."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rela_cli.data.batches.cache import ImageStats
from rela_cli.data.batches.loader import CPU, Images, centre, in_blocks
from rela_cli.learners.build import in_eval_mode


def representations(
    backbone: nn.Module, images: Images, data: ImageStats, block_size: int, place: torch.device = CPU
) -> Tensor:
    """(N, 3, H, W) uint8, of which the middle is shown -> (N, D) float32 on `place`, in eval mode.

    The backbone's own mode is put back.
    """
    device = next(backbone.parameters()).device
    mean, std = data.mean.to(device).view(1, 3, 1, 1), data.std.to(device).view(1, 3, 1, 1)
    shown = lambda x: (centre(x, data.size).float() / 255 - mean) / std  # noqa: E731
    with in_eval_mode(backbone):
        blocks = in_blocks(lambda x: backbone(shown(x)), images, block_size, device, place=place)
        return gathered(blocks, len(images), place)


def gathered(
    blocks: Iterable[Tensor], count: int, place: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Blocks (n, ...), `count` rows in all, as one tensor; no more than one or two of them are held beside it."""
    found, filled = torch.empty(0, 0, device=place, dtype=dtype), 0
    for block in blocks:
        if not filled:
            found = torch.empty(count, *block.shape[1:], device=place, dtype=dtype)
        found[filled : filled + len(block)] = block
        filled += len(block)
    return found
