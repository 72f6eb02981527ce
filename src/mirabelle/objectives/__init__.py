"""The training loss, written as a weighted sum of terms; each kind of term has its own file."""

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
from mirabelle.objectives.embeddings import CRD, RKD, SimKD
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.hidden import AttentionTransfer, FeatureKL, Hint, ReviewKD, SimilarityPreserving
from mirabelle.objectives.objective import Objective, Term
from mirabelle.objectives.rate import Rate
from mirabelle.objectives.sparsity import L1, L2
from mirabelle.objectives.structured import GroupLasso, Growing
from mirabelle.objectives.task_loss import TaskLoss
from mirabelle.objectives.tokens import AttentionMaps, HiddenStates, TokenRelations

__all__ = [
    "CRD",
    "DIST",
    "DKD",
    "L1",
    "L2",
    "MLKD",
    "RKD",
    "AttentionMaps",
    "AttentionTransfer",
    "FeatureKL",
    "Forward",
    "GroupLasso",
    "Growing",
    "HiddenStates",
    "Hint",
    "JensenShannon",
    "MultiLabel",
    "Objective",
    "Rate",
    "Regression",
    "ReverseKL",
    "ReviewKD",
    "SimKD",
    "SimilarityPreserving",
    "SoftTargets",
    "TaskLoss",
    "Term",
    "TokenRelations",
]
