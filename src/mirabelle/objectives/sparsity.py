"""Regularization terms that pull single weights towards zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.objectives.objective import Term
from mirabelle.records.patterns import selected
from mirabelle.records.record import Patterns, record

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


@record
class L1(Term):
    """L1 regularization: Σ |w| over the selected parameters.

    Args:
        include: patterns of parameter names; by default every weight of two or more dimensions with finite values.

    Example:
        >>> 1e-4 * L1(include=("fc*.weight",))
        Objective(terms=((0.0001, L1(include=('fc*.weight',))),))
    """

    reads_weights: ClassVar[bool] = True
    include: Patterns = ()

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del task, example
        return _norm(model, self.include, power=1)


@record
class L2(Term):
    """L2 regularization: Σ w² over the selected parameters.

    Args:
        include: patterns of parameter names; by default every weight of two or more dimensions with finite values.

    Example:
        >>> 1e-4 * L2()
        Objective(terms=((0.0001, L2(include=())),))
    """

    reads_weights: ClassVar[bool] = True
    include: Patterns = ()

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del task, example
        return _norm(model, self.include, power=2)


def _norm(model: nn.Module, include: Patterns, power: int) -> nn.Module:
    """A bound term Σ |w|^power. It refers to the model's parameters and has none of its own."""
    import torch

    from mirabelle.objectives.bound_objective import BoundFunction

    parameters = selected(model, include).values()
    chosen = [parameter for parameter in parameters if include or bool(parameter.isfinite().all())]  # a mask may have −inf
    if power == 1:
        return BoundFunction(lambda _: torch.stack([parameter.abs().sum() for parameter in chosen]).sum())
    return BoundFunction(lambda _: torch.stack([parameter.square().sum() for parameter in chosen]).sum())
