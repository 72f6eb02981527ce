"""Pruning by Wanda: magnitudes times input norms, ranked within each output, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, record
from mirabelle.scores.activation_norm import ActivationNorm
from mirabelle.scores.score import Evidence, LayerScore, Need

if TYPE_CHECKING:
    from torch import Tensor


@record
class Wanda(LayerScore):
    """Magnitude times input norm, |w_ij| · ‖x_j‖, ranked within each row i, so that every output keeps as many weights.

    ‖x_j‖ = √E[x_j²], x_j the input that column j is multiplied by, once the layers before are pruned. No weight that is kept
    changes, and there is nothing to train. `ActivationNorm` ranks by the same product within a tensor, or over all of them.

    Args:
        samples: number of training samples over which the norms are computed; their labels are not used.

    Raises:
        UserError: E112 if a parameter of another kind is selected by name, or if its layer never runs; E131 if inputs of a
            layer are NaN or infinite.

    Example:
        >>> import torch
        >>> weight, squares = torch.tensor([[3.0, -1.0], [0.1, 0.2]]), torch.tensor([0.01, 1.0])
        >>> Wanda().pruned(weight, squares, 0.5)
        tensor([[ 0.0000, -1.0000],
                [ 0.0000,  0.2000]])

    Source: Sun, Liu, Bair, Kolter 2023, arXiv:2306.11695.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"input_norms"})

    samples: Count = 128

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return ActivationNorm()(tensor, evidence)

    def pruned(self, weight: Tensor, moments: Tensor, amount: float | tuple[int, int]) -> Tensor:
        from mirabelle.numerics.masks import keep_highest_by_row, keep_highest_of_each

        scores = weight.abs() * moments.sqrt()
        keep = keep_highest_of_each(scores, *amount) if isinstance(amount, tuple) else keep_highest_by_row(scores, amount)
        return weight * keep
