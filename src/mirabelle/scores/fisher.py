"""The score of Fisher pruning: the second-order change of the loss, estimated by the Fisher information."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, record
from mirabelle.scores.score import Evidence, Need, Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@record
class Fisher(Score):
    """Fisher pruning: ½ F w², F = mean (∂ℓₙ/∂w)² over samples n, ℓₙ the loss of sample n.

    This estimates the increase of the loss when w is set to zero, if the mean gradient is zero: F is the diagonal of the
    empirical Fisher information, used in place of that of the Hessian. The score of a unit is Σ ½ F w² over its weights.

    Args:
        samples: number of training samples; each needs a backward pass of its own.

    Example:
        >>> import torch
        >>> evidence = Evidence("weight", squared_gradient=torch.tensor([[0.5, 1.0]]))
        >>> Fisher()(torch.tensor([[2.0, 3.0]]), evidence)
        tensor([[1.0000, 4.5000]])

    Source: Theis, Korshunova, Tejani, Huszár 2018, arXiv:1801.05787; Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao,
    Zhang 2021, arXiv:2108.00708 (groups).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"squared_gradient"})

    samples: Count = 128

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.squared_gradient is not None, "requested by `needs`"
        return 0.5 * evidence.squared_gradient * tensor.square()

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return self(tensor, evidence)

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return sums
