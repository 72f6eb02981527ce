"""The layer that stores few bits per weight, with a scale for each group of neighbouring weights of a row."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.model.replacement import Replacement
from mirabelle.numerics.group_codes import Grid, GroupCodes, decoded, nearest
from mirabelle.quantize.dense_layers import WEIGHTED, applied_of, as_in_dense, bias_of, weight_of
from mirabelle.runtime import group_operators

Kernel = Literal["float", "MatMulNBits"]


class GroupLayer(Replacement):
    """A layer with codes of 2 to 8 bits that computes in floating point: y = layer(x, scale · code, bias).

    Weight j of a row belongs to group j // group_size, in the order in which the row lies in memory; the last group of a row
    may have fewer weights. An embedding returns decoded rows.

    Buffers: codes, int8, with the shape of the weight; scale, (out, groups); with `zero_points`, zero_point, int8, (out,
    groups), where code + zero_point, without them code alone, is a number of −2^(bits−1) to 2^(bits−1) − 1, which files
    store; bias, (out,), if the layer has one; with `divided`, factor, (in,), by which inputs are multiplied first. Layers
    that shared a weight share codes, scales and zero points.

    Args:
        dense: the layer to replace: Linear, Conv1d, Conv2d, Conv3d, Embedding, or Conv1D of transformers.
        weight_bits: bits per weight.
        group_size: weights of a group; 0 for whole rows.
        zero_points: whether groups have zero points.
        kernel: in an ONNX file; "float" decodes the weights when the file is loaded, "MatMulNBits" is the kernel of ONNX
            Runtime that multiplies by codes. It takes groups of 16, 32, 64, 128 or 256 weights of linear layers.
        divided: whether inputs are multiplied by a factor, so that the weight is that of the dense layer, divided by it.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    factor: Tensor | None

    def __init__(
        self,
        dense: nn.Module,
        weight_bits: int,
        group_size: int = 0,
        *,
        zero_points: bool = False,
        kernel: Kernel = "float",
        divided: bool = False,
    ) -> None:
        chosen = {"zero_points": zero_points, "divided": divided, "kernel": "" if kernel == "float" else kernel}
        super().__init__(
            {"weight_bits": weight_bits, "group_size": group_size, **{key: value for key, value in chosen.items() if value}}
        )
        weight, bias = weight_of(dense, WEIGHTED), bias_of(dense)
        self.applied = None if isinstance(dense, nn.Embedding) else applied_of(dense)
        self.kind = type(dense).__name__
        self.group = group_size or weight[0].numel()
        groups = -(-weight[0].numel() // self.group)
        self.register_buffer("codes", torch.zeros(weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(len(weight), groups))
        self.register_buffer("zero_point", torch.zeros(len(weight), groups, dtype=torch.int8) if zero_points else None)
        self.register_buffer("bias", None if bias is None else torch.zeros_like(bias))
        self.register_buffer("factor", torch.ones(weight.shape[1]) if divided else None)

    @classmethod
    @torch.no_grad()
    def quantized(
        cls,
        dense: nn.Module,
        weight_bits: int,
        group_size: int = 0,
        *,
        zero_points: bool = False,
        clipping: bool = True,
        kernel: Kernel = "float",
        codes: GroupCodes | None = None,
        factor: Tensor | None = None,
    ) -> GroupLayer:
        """Quantize the weights of a layer: to the nearest values, or with given codes.

        Args:
            dense: the layer.
            weight_bits: bits per weight.
            group_size: weights of a group; 0 for whole rows.
            zero_points: whether groups have zero points.
            clipping: whether ranges are narrowed to those with the smallest squared error.
            kernel: in an ONNX file.
            codes: of the weight, or with a factor of the weight divided by it; by default the nearest.
            factor: (in,), by which inputs are multiplied.
        """
        layer = cls(dense, weight_bits, group_size, zero_points=zero_points, kernel=kernel, divided=factor is not None)
        if codes is None:
            rows = weight_of(dense, WEIGHTED).flatten(1).float()
            codes = nearest(rows, layer.group, Grid(weight_bits, zero_points, clipping))
        layer.codes.copy_(codes.codes.reshape(layer.codes.shape))
        layer.scale.copy_(codes.scale)
        if layer.zero_point is not None and codes.zero_point is not None:
            layer.zero_point.copy_(codes.zero_point)
        bias = bias_of(dense)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
        if layer.factor is not None and factor is not None:
            layer.factor.copy_(factor)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        if self.factor is not None:
            inputs = inputs * self.factor.reshape(-1, *[1] * (self.codes.dim() - 2))
        if self.settings.get("kernel") == "MatMulNBits":
            result: Tensor = group_operators.group_linear(inputs, *self._coded())
            return result if self.bias is None else result + self.bias
        if self.applied is not None:
            return self.applied(inputs, self._weight(), self.bias)
        if torch.compiler.is_exporting():
            return F.embedding(inputs, self._weight())
        rows, scale = (
            F.embedding(inputs, self.codes),
            F.embedding(inputs, self.scale),
        )  # only those that are looked up are decoded
        return decoded(rows.flatten(0, -2), scale.flatten(0, -2), self.group).reshape(rows.shape)

    def stored_tensors(self) -> dict[str, Tensor]:
        found = {"codes": self.codes, "bias": self.bias, "factor": self.factor}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias as the numbers that the codes stand for."""
        weight = decoded(self.codes, self.scale, self.group)
        if self.factor is not None:
            weight = weight * self.factor.reshape(-1, *[1] * (weight.dim() - 2))
        weight = as_in_dense(weight, self.kind)
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": self.bias}

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.codes.shape)}, {', '.join(f'{key}={value}' for key, value in self.settings.items())}"

    def _weight(self) -> Tensor:
        weight: Tensor = group_operators.decode_groups(*self._coded())
        return weight

    def _coded(self) -> tuple[Any, ...]:
        return self.codes, self.scale, self.zero_point, self.settings["weight_bits"], self.group
