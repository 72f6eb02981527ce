"""Training: settings, the training loop, evaluation, checkpoints, the teacher, and several techniques in one training."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily
from mirabelle.training.contracts import Control, JoinsTraining, Prepared
from mirabelle.training.joint import Joint
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    from mirabelle.training.evaluation import evaluate, evaluate_metrics, outputs_of
    from mirabelle.training.execution import Execution, fastest_execution
    from mirabelle.training.kept_zeros import KeptZeros
    from mirabelle.training.loop import fit
    from mirabelle.training.objective_by_default import default_objective
    from mirabelle.training.shared import train_together, with_replaced_model_as_teacher, with_scale_of_targets

__all__ = [
    "Control",
    "Execution",
    "JoinsTraining",
    "Joint",
    "KeptZeros",
    "Prepared",
    "Training",
    "default_objective",
    "evaluate",
    "evaluate_metrics",
    "fastest_execution",
    "fit",
    "outputs_of",
    "train_together",
    "with_replaced_model_as_teacher",
    "with_scale_of_targets",
]
__getattr__ = lazily(
    "mirabelle.training",
    {
        "evaluation": ["evaluate", "evaluate_metrics", "outputs_of"],
        "execution": ["Execution", "fastest_execution"],
        "kept_zeros": ["KeptZeros"],
        "loop": ["fit"],
        "objective_by_default": ["default_objective"],
        "shared": ["train_together", "with_replaced_model_as_teacher", "with_scale_of_targets"],
    },
)
