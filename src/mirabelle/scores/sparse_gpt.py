"""Pruning by SparseGPT: the weights that cost least are removed, and those after them in the row make up for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, Positive, record
from mirabelle.scores.score import Evidence, LayerScore, Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@record
class SparseGPT(LayerScore):
    """Optimal Brain Surgeon in blocks of 128 columns: in each, the weights with the least w² / U_jj² become zero.

    H = E[x xᵀ] + λ I, x the inputs of the layer once the layers before are pruned, λ = damping · mean of the diagonal, and
    H⁻¹ = Uᵀ U. The columns after a changed one get the change that keeps the error of the outputs smallest
    (`numerics.compensation`), so weights that are kept change, too. There is nothing to train. As the score of a weight
    alone, or of units, it is w² / (2 [H⁻¹]_jj).

    Args:
        damping: λ divided by the mean of the diagonal, > 0.
        samples: number of training samples over which H is computed; their labels are not used. A layer needs columns²
            numbers.

    Raises:
        UserError: E112 if a parameter of another kind is selected by name, or if its layer never runs; E131 if inputs of a
            layer are NaN or infinite.

    Example:
        >>> import torch
        >>> moments = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
        >>> SparseGPT(damping=1e-9).pruned(torch.tensor([[0.5, 1.0]]), moments, 0.5).round(decimals=4)
        tensor([[0.0000, 1.4500]])

    Source: Frantar, Alistarh 2023, arXiv:2301.00774.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"input_moments"})

    damping: Positive = 0.01
    samples: Count = 128

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        import torch

        from mirabelle.numerics.compensation import inverse_factor

        assert evidence.input_moments is not None, "requested by `needs`"
        factors = [inverse_factor(moments.double(), self.damping) for moments in evidence.input_moments]
        inverse = torch.stack([factor.square().sum(0) for factor in factors])  # the diagonals of Uᵀ U
        by_column = tensor.double().reshape(len(inverse), -1, inverse.shape[1])
        return (by_column.square() / (2 * inverse).unsqueeze(1)).reshape(tensor.shape).to(tensor.dtype)

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return self(tensor, evidence)

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return sums

    def pruned(self, weight: Tensor, moments: Tensor, amount: float | tuple[int, int]) -> Tensor:
        from mirabelle.numerics.compensation import Removing, compensated, inverse_factor

        rule = Removing(of_each=amount) if isinstance(amount, tuple) else Removing(sparsity=amount)
        return compensated(weight, inverse_factor(moments, self.damping), rule).to(weight.dtype)
