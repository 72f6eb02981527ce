"""The score of Optimal Brain Surgeon: the output error that the layer's other weights cannot compensate."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, Positive, record
from mirabelle.scores.score import Evidence, Need, Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn


@record
class Hessian(Score):
    """Optimal Brain Surgeon (OBS): w_ij² / (2 [H⁻¹]_jj), H = 2 E[x xᵀ] + λ I, x the input that the weight's rows multiply.

    This is the least increase of the layer's squared output error when w_ij is set to zero and the other weights of row i are
    adjusted to compensate. λ is `damping` times the mean of the diagonal of 2 E[x xᵀ]. Defined for the weights of linear
    layers and convolutions, not of transposed convolutions. The score of a unit is the sum of its weights' scores.

    Args:
        damping: λ divided by the mean of the diagonal, > 0.
        samples: number of training samples over which E[x xᵀ] is computed; a layer needs columns² numbers of memory.

    Raises:
        UserError: E112 if a parameter of another kind is selected by name, or if its layer never runs.

    Example:
        >>> import torch
        >>> evidence = Evidence("weight", input_moments=torch.diag(torch.tensor([1.0, 4.0])).unsqueeze(0))
        >>> Hessian(damping=1e-9)(torch.tensor([[2.0, 1.0]]), evidence)
        tensor([[4., 4.]])

    Source: Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"; Frantar & Alistarh
    2023, arXiv:2301.00774 (the layer's H, damped).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"input_moments"})

    damping: Positive = 0.01
    samples: Count = 128

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.input_moments is not None, "requested by `needs`"
        return self._rises(tensor, evidence.input_moments)

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return self(tensor, evidence)

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return sums

    def covers(self, name: str, tensor: Tensor, module: nn.Module) -> bool:
        from mirabelle.calibration.columns import multiplies_inputs

        del name
        return multiplies_inputs(module, tensor)

    def _rises(self, tensor: Tensor, moments: Tensor) -> Tensor:
        import torch

        hessian = 2 * moments.double()
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        damping = (self.damping * diagonal.mean(1, keepdim=True)).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        diagonal += damping
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).diagonal(dim1=1, dim2=2)
        by_column = tensor.double().reshape(len(moments), -1, moments.shape[1])
        return (by_column.square() / (2 * inverse).unsqueeze(1)).reshape(tensor.shape).to(tensor.dtype)
