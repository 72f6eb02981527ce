"""How much each weight or unit matters: one file a score, higher = keep."""

from mirabelle.scores.magnitude import Magnitude
from mirabelle.scores.random import Random
from mirabelle.scores.score import Evidence, Score

__all__ = ["Evidence", "Magnitude", "Random", "Score"]
