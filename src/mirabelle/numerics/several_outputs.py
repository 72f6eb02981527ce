"""Outputs and targets of models with several outputs, as pairs of tensors and as one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

UNLABELLED = -100  # the class index that cross entropy ignores


def paired(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pair each output with its part of the targets, both flattened to (batch, numbers).

    Args:
        outputs: one tensor or several, each (batch, ...).
        targets: (batch, ...), the targets of all outputs concatenated.

    Example:
        >>> pairs = paired((torch.zeros(2, 3), torch.zeros(2, 2, 2)), torch.zeros(2, 7))
        >>> [tuple(part.shape) for pair in pairs for part in pair]
        [(2, 3), (2, 3), (2, 4), (2, 4)]
    """
    flat = [part.flatten(1) for part in ((outputs,) if isinstance(outputs, Tensor) else outputs)]
    flat = [part if part.is_floating_point() else part.float() for part in flat]
    parts = torch.split(targets.flatten(1), [part.shape[1] for part in flat], dim=1)
    return [(one, other.to(one.dtype)) for one, other in zip(flat, parts, strict=True)]


def as_one_tensor(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Turn the outputs of a model into targets: a single output unchanged, several concatenated to (batch, numbers).

    Example:
        >>> as_one_tensor((torch.zeros(2, 3), torch.zeros(2, 2, 2))).shape
        torch.Size([2, 7])
    """
    return outputs if isinstance(outputs, Tensor) else torch.cat([part.flatten(1).float() for part in outputs], dim=1)
