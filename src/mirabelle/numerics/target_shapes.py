"""What the shapes and types of outputs and targets alone say about them.

Who knows the task asks `mirabelle.task.outputs`, which also looks at the loss and the labels.
"""

from __future__ import annotations

from torch import Tensor

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


def are_yes_or_no(outputs: Tensor, targets: Tensor) -> bool:
    """Whether each output is a decision of its own: outputs shaped as the targets, or (samples, 1).

    Example:
        >>> import torch
        >>> are_yes_or_no(torch.zeros(4, 3), torch.zeros(4, 3)), are_yes_or_no(torch.zeros(4, 3), torch.zeros(4))
        (True, False)
    """
    return outputs.shape == targets.shape or outputs.shape[1:] == (1,)


def unlabelled(targets: Tensor) -> Tensor:
    """Which samples have no label, (samples,): all their targets are `UNLABELLED`."""
    return (targets == UNLABELLED).reshape(len(targets), -1).all(1)
