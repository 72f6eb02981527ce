"""Means over a selection that may be empty, such as the labelled tokens of a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def mean_of(mean: Callable[..., Tensor], values: Tensor, *others: Tensor) -> Tensor:
    """mean(values, *others); 0 with a gradient of zero if there are no values, for which torch gives NaN.

    Args:
        mean: a mean over all elements, such as `torch.mean` or `torch.nn.functional.mse_loss`.
        values: a tensor of any shape.
        others: tensors of the same shape.

    Example:
        >>> import torch
        >>> mean_of(torch.mean, torch.tensor([1.0, 2.0])), mean_of(torch.mean, torch.zeros(0, 4))
        (tensor(1.5000), tensor(0.))
    """
    return mean(values, *others) if values.numel() else nothing(values)


def nothing(values: Tensor) -> Tensor:
    """A zero whose gradient for `values`, of any shape, is zero, also where they are infinite or NaN."""
    return values.flatten()[:0].sum()
