"""Importance scores of weights and units; a higher score means keep. Each score has its own file."""

from mirabelle.scores.activation_norm import ActivationNorm
from mirabelle.scores.batch_norm_scale import BatchNormScale
from mirabelle.scores.fisher import Fisher
from mirabelle.scores.hessian import Hessian
from mirabelle.scores.magnitude import Magnitude
from mirabelle.scores.movement import Movement
from mirabelle.scores.random import Random
from mirabelle.scores.score import Evidence, Score
from mirabelle.scores.sparse_gpt import SparseGPT
from mirabelle.scores.taylor import Taylor
from mirabelle.scores.wanda import Wanda

__all__ = [
    "ActivationNorm",
    "BatchNormScale",
    "Evidence",
    "Fisher",
    "Hessian",
    "Magnitude",
    "Movement",
    "Random",
    "Score",
    "SparseGPT",
    "Taylor",
    "Wanda",
]
