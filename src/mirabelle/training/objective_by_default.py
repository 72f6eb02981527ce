"""The loss of a training that names none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.objectives import Objective, SoftTargets, TaskLoss

if TYPE_CHECKING:
    from mirabelle.task.task import Task


def default_objective(task: Task) -> Objective:
    """The default objective: the task's loss; for classification with a teacher 0.9 · SoftTargets(T = 4) + 0.1 · TaskLoss.

    A model that is known to have learned nothing does not teach by default (`Task.without_lessons_of`).
    """
    guided = task.has_lessons and task.outputs.classifies
    return 0.9 * SoftTargets(temperature=4.0) + 0.1 * TaskLoss() if guided else 1.0 * TaskLoss()
