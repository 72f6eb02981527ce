"""The movement score: weights that move away from zero are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Count, record
from mirabelle.scores.score import Evidence, Need, Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@record
class Movement(Score):
    """Movement: −g · w, with the gradient g of the loss; above 0 where gradient descent makes the weight larger.

    In `prune.Weights(revive = true)` it is added up over the optimizer steps, S = −Σ g · w, as in movement pruning: what counts
    is not how large a weight is, but whether the fine-tuning enlarges it. Elsewhere g is the mean gradient of the given model.

    Args:
        samples: number of training samples over which the gradient is computed, if it is not added up in a training.

    Example:
        >>> import torch
        >>> evidence = Evidence("weight", gradient=torch.tensor([[0.5, -1.0]]))
        >>> Movement()(torch.tensor([[2.0, 3.0]]), evidence)
        tensor([[-1.,  3.]])

    Source: Sanh, Wolf, Rush 2020, arXiv:2005.07683.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    samples: Count = 256

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.gradient is not None, "requested by `needs`"
        return -evidence.gradient * tensor

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        return self(tensor, evidence)

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return sums
