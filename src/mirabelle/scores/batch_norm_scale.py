"""The score of network slimming: the scale of a channel's normalization layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.records.record import record
from mirabelle.scores.score import Evidence, Score

if TYPE_CHECKING:
    from torch import Tensor, nn


@record
class BatchNormScale(Score):
    """Scale of normalization (network slimming): |γ| of the normalization layer of a channel.

    Defined only for the scales of normalization layers (batch, instance, group, layer and RMS norm): a channel without one
    has no score. The score of a unit is √Σ γ² over its normalization layers. Most useful if the model was trained with an L1
    penalty on the scales.

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
