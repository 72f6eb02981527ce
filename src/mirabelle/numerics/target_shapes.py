"""What the shapes and types of outputs and targets alone say about them.

Who knows the task asks `mirabelle.task.outputs`, which also looks at the loss and the labels.
"""

from __future__ import annotations

from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED

CLASS_SCORES = 2  # dimensions of scores of one class a sample: batch, classes


def are_class_indices(targets: Tensor) -> bool:
    """Whether targets are one class index for each sample: integers, (samples,), some of them `UNLABELLED` perhaps.

    Example:
        >>> import torch
        >>> are_class_indices(torch.tensor([0, 2])), are_class_indices(torch.tensor([0.0, 2.0]))
        (True, False)
    """
    return not targets.is_floating_point() and targets.dim() == 1


def are_one_class(outputs: Tensor, targets: Tensor) -> bool:
    """Whether each sample has scores of classes, (samples, classes), and the index of the right one, (samples,)."""
    return outputs.dim() == CLASS_SCORES and are_class_indices(targets)


def are_one_class_each_place(outputs: Tensor, targets: Tensor) -> bool:
    """Whether outputs, (samples, ..., classes), score the classes at each place of the targets, (samples, ...)."""
    return outputs.dim() > CLASS_SCORES and targets.shape == outputs.shape[:-1]


def aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape of the outputs: axes of length 1 do not matter, and one of the two may be flat, (samples, numbers).

    Without this, (samples, 1) and (samples,) would be broadcast to (samples, samples).

    Raises:
        UserError: E131 if outputs and targets have other shapes.

    Example:
        >>> import torch
        >>> aligned(torch.zeros(4, 1), torch.arange(4)).shape, aligned(torch.zeros(4, 6), torch.zeros(4, 2, 3)).shape
        (torch.Size([4, 1]), torch.Size([4, 6]))
    """
    own, other = ([size for size in part.shape[1:] if size != 1] for part in (outputs, targets))
    flat = min(len(own), len(other)) <= 1
    if outputs.shape[:1] == targets.shape[:1] and outputs.numel() == targets.numel() and (own == other or flat):
        return targets.reshape(outputs.shape)
    raise UserError(
        "E131",
        f"each output needs one target; outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}",
        "give targets the shape of the outputs; those of a classification must be integers (int64)",
    )


def unlabelled(targets: Tensor) -> Tensor:
    """Which samples have no label, (samples,): all their targets are `UNLABELLED`."""
    return (targets == UNLABELLED).reshape(len(targets), -1).all(1)
