"""The first-order Taylor score: the change of the loss when a weight is set to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, record
from mirabelle.scores.score import Evidence, Need, Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@record
class Taylor(Score):
    """First-order Taylor expansion: (g w)², the squared change of the loss if w is set to zero; g is the mean gradient.

    For units the samples are divided into `parts`, since the gradient over all samples of a trained network is close to zero.
    The score of a unit is the mean over the parts of (Σ g w)², g the mean gradient over a part, summed over the unit's
    weights.

    Args:
        samples: number of training samples over which the gradient is computed.
        parts: number of parts into which the samples are divided for scores of units.

    Example:
        >>> import torch
        >>> evidence = Evidence("weight", gradient=torch.tensor([[0.5, -1.0]]))
        >>> Taylor()(torch.tensor([[2.0, 3.0]]), evidence)
        tensor([[1., 9.]])

    Source: Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440; Molchanov, Mallya, Tyree, Frosio, Kautz 2019,
    arXiv:1906.10771.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    samples: Count = 256
    parts: Count = 16

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return self.contributions(tensor, evidence).square()

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.gradient is not None, "requested by `needs`"
        return evidence.gradient * tensor

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        squares: npt.NDArray[np.float64] = sums**2
        return squares
