"""What the networks of this folder share."""

from __future__ import annotations

import torch

from zoo.architecture import arguments, floats

VECTORS = arguments(floats(7, 9))
SEQUENCES = arguments(floats(7, 11, 9))
IMAGES = arguments(floats(2, 3, 11, 13))


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, time, heads · depth) to (batch, heads, time, depth)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merged_heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, time, depth) to (batch, time, heads · depth)."""
    return x.transpose(1, 2).flatten(2)
