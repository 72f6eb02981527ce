"""The score of Wanda: the magnitude of a weight times the norm of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, record
from mirabelle.scores.score import Evidence, Need, Score

if TYPE_CHECKING:
    from torch import Tensor, nn


@record
class ActivationNorm(Score):
    """Magnitude times input norm (Wanda): |w_ij| · ‖x_j‖, ‖x_j‖ = √E[x_j²], x_j the input that column j is multiplied by.

    Defined for the weights of linear layers and convolutions, not of transposed convolutions. The score of a unit is
    √Σ w² ‖x‖² over its weights.

    Args:
        samples: number of training samples over which the norms are computed.

    Raises:
        UserError: E112 if a parameter of another kind is selected by name, or if its layer never runs.

    Example:
        >>> import torch
        >>> evidence = Evidence("weight", input_norms=torch.tensor([[0.5, 2.0]]))
        >>> ActivationNorm()(torch.tensor([[3.0, -1.0]]), evidence)
        tensor([[1.5000, 2.0000]])

    Source: Sun, Liu, Bair, Kolter 2023, arXiv:2306.11695.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"input_norms"})

    samples: Count = 128

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        norms = evidence.input_norms
        assert norms is not None, "requested by `needs`"
        by_column = tensor.reshape(norms.shape[0], -1, norms.shape[1])
        return (by_column.abs() * norms.unsqueeze(1)).reshape(tensor.shape)

    def covers(self, name: str, tensor: Tensor, module: nn.Module) -> bool:
        from mirabelle.calibration.columns import multiplies_inputs

        del name
        return multiplies_inputs(module, tensor)
