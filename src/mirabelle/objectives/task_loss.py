"""The task's own loss as a term."""

from __future__ import annotations

from torch import Tensor, nn

from mirabelle.batch import Batch
from mirabelle.objectives.objective import Forward, Term
from mirabelle.plain import record
from mirabelle.task import Loss, Task


@record
class TaskLoss(Term):
    """task.loss(outputs, targets), computed in float32.

    Example:
        >>> 0.5 * TaskLoss() + TaskLoss()
        Objective(terms=((0.5, TaskLoss()), (1.0, TaskLoss())))
    """

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del model, example
        return _BoundTaskLoss(task.loss)


class _BoundTaskLoss(nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, forward: Forward) -> Tensor:
        return self.loss(forward.outputs.float(), forward.batch.targets)
