"""The task's own loss as a term."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.objectives.objective import Term
from mirabelle.plain import record

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.batch import Batch
    from mirabelle.task import Task


@record
class TaskLoss(Term):
    """task.loss(outputs, targets), computed in float32.

    Example:
        >>> 0.5 * TaskLoss() + TaskLoss()
        Objective(terms=((0.5, TaskLoss()), (1.0, TaskLoss())))
    """

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.bound import Bound

        del model, example
        return Bound(lambda forward: task.loss(forward.outputs.float(), forward.batch.targets))
