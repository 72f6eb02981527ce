"""The teacher's softened decisions as targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.errors import UserError
from mirabelle.objectives.objective import Forward, Term
from mirabelle.plain import Positive, record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.batch import Batch
    from mirabelle.task import Task


@record
class SoftTargets(Term):
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Args:
        temperature: T > 0; the higher, the more the teacher's ranking of wrong classes counts.

    Example:
        >>> objective = 0.9 * SoftTargets(temperature=4.0)
        >>> objective.needs_teacher
        True

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    """

    temperature: Positive = 4.0
    needs_teacher = True

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.bound import Bound

        del model, task, example
        return Bound(self._divergence)

    def _divergence(self, forward: Forward) -> Tensor:
        from mirabelle.numerics.divergence import soft_target_divergence

        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        student, teacher = forward.outputs, forward.teacher.outputs
        if student.shape != teacher.shape:
            raise UserError(
                "E111",
                f"student gives {tuple(student.shape[1:])} outputs a sample, the teacher {tuple(teacher.shape[1:])}",
                "take a teacher and a student with the same classes",
            )
        return soft_target_divergence(student, teacher, self.temperature)
