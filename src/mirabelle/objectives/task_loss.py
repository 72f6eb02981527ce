"""The task's own loss as a term of the training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.objectives.forward import MeanOver
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

    The loss of a batch without any label is 0.

    Example:
        >>> 0.5 * TaskLoss() + TaskLoss()
        Objective(terms=((0.5, TaskLoss()), (1.0, TaskLoss())))
    """

    mean_over: ClassVar[MeanOver] = "targets"

    def mean_in(self, task: Task) -> MeanOver:
        from mirabelle.task.loss import TorchLoss

        sums = isinstance(task.loss, TorchLoss) and task.loss.settings.get("reduction") == "sum"
        return "nothing" if sums else self.mean_over

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        import torch

        from mirabelle.numerics.selections import nothing
        from mirabelle.numerics.target_shapes import unlabelled
        from mirabelle.objectives.bound_objective import BoundFunction
        from mirabelle.task.batch import in_float32, parts_of
        from mirabelle.task.outputs import Form

        del model, example
        classes = task.outputs.form is Form.UNKNOWN or task.outputs.classifies

        def loss(forward: Forward) -> Tensor:
            outputs, targets = in_float32(forward.outputs), forward.batch.targets
            if classes and not targets.is_floating_point() and bool(unlabelled(targets).all()):
                # The losses of `task.LOSSES` do this themselves; one of the user's own may give NaN.
                return torch.stack([nothing(part) for part in parts_of(outputs)]).sum()
            return task.loss(outputs, targets)

        return BoundFunction(loss)
