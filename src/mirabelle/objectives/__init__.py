"""The training loss as a weighted sum of terms: one file per family of terms."""

from mirabelle.objectives.objective import Forward, Objective, Term
from mirabelle.objectives.soft_targets import SoftTargets
from mirabelle.objectives.sparsity import L1, L2
from mirabelle.objectives.structured import GroupLasso, Growing
from mirabelle.objectives.task_loss import TaskLoss

__all__ = ["L1", "L2", "Forward", "GroupLasso", "Growing", "Objective", "SoftTargets", "TaskLoss", "Term"]
