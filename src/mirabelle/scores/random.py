"""Random scores: the baseline that every other score must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.records.record import record
from mirabelle.run import files
from mirabelle.scores.score import Evidence, Score

if TYPE_CHECKING:
    from torch import Tensor


@record
class Random(Score):
    """Random scores, uniform in [0, 1).

    They depend only on the seed and the parameter's name, so that gradual pruning never restores a pruned weight.

    Args:
        seed: of the random numbers.
    """

    seed: int = 0

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        import torch

        from mirabelle.numerics.draws import generator_from

        seed = int(files.digest(f"{self.seed} {evidence.name}".encode()), 16) >> 1
        return torch.rand(tensor.shape, generator=generator_from(seed))
