"""The magnitude score: large weights are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mirabelle.records.record import record
from mirabelle.scores.score import Evidence, Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@record
class Magnitude(Score):
    """Magnitude: |w|. The score of a unit is the norm of its weights, (Σ |w|ᵖ)^(1/p).

    Args:
        order: p of the norm of a unit, 1 or 2.

    Example:
        >>> import torch
        >>> Magnitude()(torch.tensor([[3.0, -4.0]]), Evidence("weight"))
        tensor([[3., 4.]])

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626 (weights); Li, Kadav, Durdanovic, Samet, Graf 2017,
    arXiv:1608.08710 (filters).
    """

    order: Literal[1, 2] = 2

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        del evidence
        return tensor.abs()

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return self(tensor, evidence).pow(self.order)

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        norms: npt.NDArray[np.float64] = sums ** (1 / self.order)
        return norms
