"""Masks that keep the elements with the highest scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """Boolean mask that is False for the floor(sparsity · n) elements with the lowest scores.

    Among equal scores, elements with a lower index are removed first.

    Args:
        scores: any shape, n elements.
        sparsity: fraction to remove, in [0, 1).

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
    """`keep_highest` with a single ranking of the elements of all tensors; returns one mask per tensor."""
    flat = keep_highest(torch.cat([score.flatten() for score in scores]), sparsity)
    parts = torch.split(flat, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def keep_above(scores: Tensor, threshold: float) -> Tensor:
    """Boolean mask that is True where the score is above the threshold.

    Example:
        >>> keep_above(torch.tensor([0.1, 0.5]), threshold=0.2)
        tensor([False,  True])
    """
    return scores > threshold


def _lowest(flat: Tensor, count: int) -> Tensor:
    """Indices of the `count` lowest values; of equal values, those with the lowest indices."""
    threshold = flat.kthvalue(count).values
    below = (flat < threshold).nonzero().flatten()
    equal = (flat == threshold).nonzero().flatten()
    return torch.cat([below, equal[: count - below.numel()]])
