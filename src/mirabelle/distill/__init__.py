"""Steps in which a teacher guides a smaller model: one file a step."""

from mirabelle.distill.ensemble import Ensemble
from mirabelle.distill.student import Student

__all__ = ["Ensemble", "Student"]
