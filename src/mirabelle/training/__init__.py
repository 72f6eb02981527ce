"""The only optimization loop: its settings, what it measures, how it resumes, and several techniques in one training."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily
from mirabelle.training.joint import Joint
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    from mirabelle.training.evaluation import evaluate, judged, outputs_of
    from mirabelle.training.execution import Execution, fastest_execution
    from mirabelle.training.loop import default_objective, fit
    from mirabelle.training.together import taught, train_together
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
    "judged",
    "outputs_of",
    "taught",
    "train_together",
]
__getattr__ = lazily(
    "mirabelle.training",
    {
        "Execution": "execution",
        "Zeros": "zeros",
        "default_objective": "loop",
        "evaluate": "evaluation",
        "fastest_execution": "execution",
        "fit": "loop",
        "judged": "evaluation",
        "outputs_of": "evaluation",
        "taught": "together",
        "train_together": "together",
    },
)
