"""A layer whose weight is stored in half precision."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.replacement import Replacement
from mirabelle.model.turned_linear import turned_linear
from mirabelle.quantize.dense_layers import WEIGHTED, applied_of, bias_of, weight_of
from mirabelle.runtime.half_operators import widen

HalfPrecision = Literal["float16", "bfloat16"]


class HalfLayer(Replacement):
    """A layer with a weight of 16 bits that computes in float32: y = layer(x, float32(values), bias).

    Buffers: values, float16 or bfloat16, with the shape of the dense layer's weight; bias, float32, if the layer has one.

    Args:
        dense: the layer to replace: Linear, a convolution, an Embedding, or `Conv1D` of transformers.
        precision: "float16" or "bfloat16".
    """

    values: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Module, precision: HalfPrecision) -> None:
        super().__init__({"precision": precision})
        weight, bias = weight_of(dense, WEIGHTED), bias_of(dense)
        self.applied = None if isinstance(dense, nn.Embedding) else applied_of(dense)
        self._turned = isinstance(dense, turned_linear())
        shape = weight.t().shape if self._turned else weight.shape
        self.register_buffer("values", torch.zeros(shape, dtype=getattr(torch, precision)))
        self.register_buffer("bias", None if bias is None else torch.zeros_like(bias))

    @classmethod
    @torch.no_grad()
    def rounded(cls, dense: nn.Module, precision: HalfPrecision) -> Self:
        """Round the weight of a layer."""
        layer, bias = cls(dense, precision), bias_of(dense)
        weight = weight_of(dense, WEIGHTED)
        layer.values.copy_(weight.t() if layer._turned else weight)
        if bias is not None:
            assert layer.bias is not None, "a layer with a bias has a buffer for it"
            layer.bias.copy_(bias)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        if self.applied is None:  # an embedding: only the rows that are looked up
            return F.embedding(inputs, self.values).float()
        weight = widen(self.values)
        return self.applied(inputs, weight.t() if self._turned else weight, self.bias)

    def stored_tensors(self) -> dict[str, Tensor]:
        return {"values": self.values} if self.bias is None else {"values": self.values, "bias": self.bias}

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias in float32."""
        weight = self.values.float()
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": self.bias}

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, {self.settings['precision']}"


def why_not_half(name: str, dense: nn.Module, precision: HalfPrecision) -> str | None:
    """Why the weight of a layer cannot be stored in a precision; None if it can.

    Raises:
        UserError: E121 if the weight is not finite.
    """
    weight = weight_of(dense, WEIGHTED)
    if not bool(weight.isfinite().all()):
        raise UserError("E121", f'the weight of layer "{name}" is not finite', "give weights of a trained model")
    largest, most = float(weight.abs().amax()) if weight.numel() else 0.0, torch.finfo(getattr(torch, precision)).max
    if bool(weight.to(getattr(torch, precision)).isinf().any()):
        return f"its largest weight, {largest:,.6g}, is beyond {most:,.6g}, the largest number of {precision}"
    return None


def rounded_to_zero(dense: nn.Module, precision: HalfPrecision) -> int:
    """The number of weights that are not 0, and are 0 in a precision."""
    weight = weight_of(dense, WEIGHTED)
    return int(((weight != 0) & (weight.to(getattr(torch, precision)) == 0)).sum())
