"""Which elements to keep, given one score each (higher = keep)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """Mask, True for all but the floor(sparsity · n) elements of lowest score; ties go to the later index.

    Example:
        >>> keep_highest(torch.tensor([3.0, 1.0, 2.0, 4.0]), sparsity=0.5)
        tensor([ True, False, False,  True])
    """
    removed = int(sparsity * scores.numel())
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    if removed:
        mask[_lowest(scores.flatten(), removed)] = False
    return mask.reshape(scores.shape)


def keep_highest_together(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """`keep_highest` over all tensors at once: one ranking, one mask a tensor."""
    flat = keep_highest(torch.cat([score.flatten() for score in scores]), sparsity)
    parts = torch.split(flat, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def keep_above(scores: Tensor, threshold: float) -> Tensor:
    """Mask, True where the score exceeds the threshold.

    Example:
        >>> keep_above(torch.tensor([0.1, 0.5]), threshold=0.2)
        tensor([False,  True])
    """
    return scores > threshold


def _lowest(flat: Tensor, count: int) -> Tensor:
    """Indices of the `count` lowest values; among equal values the first ones."""
    threshold = flat.kthvalue(count).values
    below = (flat < threshold).nonzero().flatten()
    equal = (flat == threshold).nonzero().flatten()
    return torch.cat([below, equal[: count - below.numel()]])
