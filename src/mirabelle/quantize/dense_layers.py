"""The layers of dense models that quantized ones replace: their weights, biases and functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.turned_linear import turned_linear

LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LINEAR_AND_CONVOLUTION = (nn.Linear, *CONVOLUTIONS)
WEIGHTED = (*LINEAR_AND_CONVOLUTION, nn.Embedding)


def weight_of(dense: nn.Module, kinds: tuple[type[nn.Module], ...] = LINEAR_AND_CONVOLUTION) -> Tensor:
    """The weight of a layer, with its outputs on the first axis."""
    if not isinstance(dense, (*kinds, *turned_linear())):
        message = f"{type(dense).__name__} cannot be quantized"
        raise UserError("E140", message, "give the dense module from which the model was made")
    weight = dense.weight
    assert isinstance(weight, Tensor), "layers of these classes have a weight"
    return weight.detach().t() if isinstance(dense, turned_linear()) else weight.detach()


def as_in_dense(weight: Tensor, kind: str) -> Tensor:
    """A weight with its outputs on the first axis, as the dense layer of a class stores it; see `turned_linear`."""
    return weight.t().contiguous() if kind == "Conv1D" else weight


def bias_of(dense: nn.Module) -> Tensor | None:
    bias = getattr(dense, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


@dataclass(frozen=True)
class Applied:
    """The function (inputs, weight, bias) -> outputs of a layer, with the settings of a convolution."""

    kind: str
    convolution: tuple[Any, ...] = ()  # stride, padding, dilation, groups

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = getattr(F, self.kind)(inputs, weight, bias, *self.convolution)
        return found


def applied_of(dense: nn.Module) -> Applied:
    if isinstance(dense, (nn.Linear, *turned_linear())):
        return Applied("linear")
    assert isinstance(dense, CONVOLUTIONS), "weight_of refuses every other kind"
    kind = {3: "conv1d", 4: "conv2d", 5: "conv3d"}[dense.weight.ndim]
    return Applied(kind, (dense.stride, dense.padding, dense.dilation, dense.groups))
