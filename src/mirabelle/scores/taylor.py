"""Keep what the loss would feel at first order."""

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
    """(g w)², g the mean gradient of the loss: the square of the loss's change without w, at first order.

    Of a unit the mean over `parts` of the samples of (Σ g w)², g the mean gradient over a part: that along the removal of the
    whole unit. Over all samples of a trained network it would be next to nothing everywhere.

    Args:
        samples: of the training data over which the gradient is taken.
        parts: into which they are divided for units.

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
        assert evidence.gradient is not None, "it was asked for"
        return evidence.gradient * tensor

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        squares: npt.NDArray[np.float64] = sums**2
        return squares
