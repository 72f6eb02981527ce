"""The only optimization loop: its settings, what it measures, how it resumes, and several techniques in one training."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily
from mirabelle.training.joint import Joint
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    from mirabelle.training.evaluation import evaluate, judged, outputs_of
    from mirabelle.training.execution import Execution, fastest_execution
    from mirabelle.training.kept_zeros import Zeros
    from mirabelle.training.loop import default_objective, fit
    from mirabelle.training.shared import taught, train_together

__all__ = [
    "Execution",
    "Joint",
    "Training",
    "Zeros",
    "default_objective",
    "evaluate",
    "fastest_execution",
    "fit",
    "judged",
    "outputs_of",
    "taught",
    "train_together",
]
__getattr__ = lazily(
    "mirabelle.training",
    {
        "evaluation": ["evaluate", "judged", "outputs_of"],
        "execution": ["Execution", "fastest_execution"],
        "kept_zeros": ["Zeros"],
        "loop": ["default_objective", "fit"],
        "shared": ["taught", "train_together"],
    },
)
