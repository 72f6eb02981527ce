"""The task's own loss as a term of the training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.objectives.objective import Term
from mirabelle.records.record import record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.objectives.forward import Forward
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


@record
class TaskLoss(Term):
    """The task's loss, loss(outputs, targets), computed in float32; samples without labels are left out of the mean.

    Example:
        >>> 0.5 * TaskLoss() + TaskLoss()
        Objective(terms=((0.5, TaskLoss()), (1.0, TaskLoss())))
    """

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.numerics.several_outputs import UNLABELLED
        from mirabelle.objectives.bound_objective import BoundFunction
        from mirabelle.task.batch import in_float32

        del model, example

        def loss(forward: Forward) -> Tensor:
            outputs, targets = in_float32(forward.outputs), forward.batch.targets
            if task.outputs.classifies and bool((targets == UNLABELLED).all()):
                return outputs.sum() * 0.0  # type: ignore[no-any-return]  # class scores are one tensor
            return task.loss(outputs, targets)

        return BoundFunction(loss)
