"""Keep by lot: the control that any other score must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.records.record import record
from mirabelle.run import files
from mirabelle.scores.score import Evidence, Score

if TYPE_CHECKING:
    from torch import Tensor


@record
class Random(Score):
    """Uniform draws in [0, 1), the same for the same seed and parameter, so that a growing mask only grows.

    Args:
        seed: of the draws.
    """

    seed: int = 0

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        import torch

        seed = int(files.digest(f"{self.seed} {evidence.name}".encode()), 16) >> 1
        return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed))
