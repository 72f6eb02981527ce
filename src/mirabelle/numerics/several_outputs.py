"""Models of several outputs: their outputs beside their targets, as pairs and as one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

UNLABELLED = -100  # the class that cross entropy leaves out


def paired(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each output with its part of the targets, both (batch, numbers); targets of several outputs lie one behind the other.

    Example:
        >>> pairs = paired((torch.zeros(2, 3), torch.zeros(2, 2, 2)), torch.zeros(2, 7))
        >>> [tuple(part.shape) for pair in pairs for part in pair]
        [(2, 3), (2, 3), (2, 4), (2, 4)]
    """
    flat = [part.flatten(1) for part in ((outputs,) if isinstance(outputs, Tensor) else outputs)]
    flat = [part if part.is_floating_point() else part.float() for part in flat]
    due = torch.split(targets.flatten(1), [part.shape[1] for part in flat], dim=1)
    return [(one, other.to(one.dtype)) for one, other in zip(flat, due, strict=True)]


def as_one_tensor(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a model gives as the targets of another one: a single output as it is, several as (batch, numbers).

    Example:
        >>> as_one_tensor((torch.zeros(2, 3), torch.zeros(2, 2, 2))).shape
        torch.Size([2, 7])
    """
    return outputs if isinstance(outputs, Tensor) else torch.cat([part.flatten(1).float() for part in outputs], dim=1)
