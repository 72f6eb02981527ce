"""Keep what is large."""

from __future__ import annotations

from torch import Tensor

from mirabelle.plain import record
from mirabelle.scores.score import Evidence, Score


@record
class Magnitude(Score):
    """|w|.

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626.
    """

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        del evidence
        return tensor.abs()
