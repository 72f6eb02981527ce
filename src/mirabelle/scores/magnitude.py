"""Keep what is large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.plain import record
from mirabelle.scores.score import Evidence, Score

if TYPE_CHECKING:
    from torch import Tensor


@record
class Magnitude(Score):
    """|w|.

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626.
    """

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        del evidence
        return tensor.abs()
