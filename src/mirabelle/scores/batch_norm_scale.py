"""Keep what its normalization layer lets through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.records.record import record
from mirabelle.scores.score import Evidence, Score

if TYPE_CHECKING:
    from torch import Tensor, nn


@record
class BatchNormScale(Score):
    """|γ| of the channel's normalization layer; of a unit √Σ γ² over the layers that it goes through.

    It speaks of the scales of normalization layers alone (batch, instance, group, layer and RMS norm): a channel without one
    has no score. Scales mean most where an L1 penalty drew them towards zero while the model was trained.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(4)
        >>> BatchNormScale().covers("norm.weight", norm.weight, norm)
        True

    Source: Liu, Li, Shen, Huang, Yan, Zhang 2017, arXiv:1708.06519.
    """

    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        del evidence
        return tensor.abs()

    def covers(self, name: str, tensor: Tensor, module: nn.Module) -> bool:
        return tensor.ndim == 1 and name.rpartition(".")[2] == "weight" and "norm" in type(module).__name__.lower()
