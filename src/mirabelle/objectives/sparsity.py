"""Regularization: terms that draw weights towards zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirabelle.batch import Batch
from mirabelle.objectives.objective import Forward, Term
from mirabelle.patterns import selected
from mirabelle.plain import record
from mirabelle.task import Task


@record
class L1(Term):
    """Σ |w| over the chosen parameters.

    Args:
        targets: patterns of parameter names; by default every weight of two or more dimensions.

    Example:
        >>> 1e-4 * L1(targets=("fc*.weight",))
        Objective(terms=((0.0001, L1(targets=('fc*.weight',))),))
    """

    targets: tuple[str, ...] = ()

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del task, example
        return _Norm(model, self.targets, power=1)


@record
class L2(Term):
    """Σ w² over the chosen parameters.

    Args:
        targets: patterns of parameter names; by default every weight of two or more dimensions.
    """

    targets: tuple[str, ...] = ()

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del task, example
        return _Norm(model, self.targets, power=2)


class _Norm(nn.Module):
    """Σ |w|^power; the parameters stay the model's, so they are held outside this module's own."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...], power: int) -> None:
        super().__init__()
        self.chosen = list(selected(model, targets).values())
        self.power = power

    def forward(self, forward: Forward) -> Tensor:
        del forward
        return torch.stack([self._size(parameter) for parameter in self.chosen]).sum()

    def _size(self, parameter: Tensor) -> Tensor:
        return parameter.abs().sum() if self.power == 1 else parameter.square().sum()
