"""The training loss as a weighted sum of terms: one file per family of terms."""

from mirabelle.objectives.decisions import (
    DIST,
    DKD,
    MLKD,
    JensenShannon,
    MultiLabel,
    Regression,
    ReverseKL,
    SoftTargets,
)
from mirabelle.objectives.objective import Forward, Objective, Term
from mirabelle.objectives.sparsity import L1, L2
from mirabelle.objectives.structured import GroupLasso, Growing
from mirabelle.objectives.task_loss import TaskLoss

__all__ = [
    "DIST",
    "DKD",
    "L1",
    "L2",
    "MLKD",
    "Forward",
    "GroupLasso",
    "Growing",
    "JensenShannon",
    "MultiLabel",
    "Objective",
    "Regression",
    "ReverseKL",
    "SoftTargets",
    "TaskLoss",
    "Term",
]
