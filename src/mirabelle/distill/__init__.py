"""Knowledge distillation: train a smaller student model with the outputs of a teacher."""

from typing import TYPE_CHECKING

from mirabelle.distill.student import Student
from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.distill.ensemble import Ensemble
    from mirabelle.distill.guided import Guided
    from mirabelle.distill.head import ReusedHead
    from mirabelle.distill.relabelling import relabelled

__all__ = [
    "Ensemble",
    "Guided",
    "ReusedHead",
    "Student",
    "relabelled",
]
__getattr__ = lazily(
    "mirabelle.distill",
    {
        "ensemble": ["Ensemble"],
        "guided": ["Guided"],
        "head": ["ReusedHead"],
        "relabelling": ["relabelled"],
    },
)
