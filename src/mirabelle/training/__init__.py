"""The only optimization loop: its settings, what it measures, how it resumes, and several techniques in one training."""

from mirabelle.training.evaluation import evaluate, outputs_of
from mirabelle.training.execution import Execution, fastest_execution
from mirabelle.training.joint import Joint, train_together
from mirabelle.training.loop import default_objective, fit
from mirabelle.training.settings import Training
from mirabelle.training.zeros import Zeros

__all__ = [
    "Execution",
    "Joint",
    "Training",
    "Zeros",
    "default_objective",
    "evaluate",
    "fastest_execution",
    "fit",
    "outputs_of",
    "train_together",
]
