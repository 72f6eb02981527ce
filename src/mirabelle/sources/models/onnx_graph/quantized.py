"""ONNX operators between floating-point numbers and integer codes."""

from __future__ import annotations

import torch
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator, type_of
from mirabelle.sources.models.onnx_graph.values import tensor_of


@operator("QuantizeLinear")
def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Integer codes round(x / scale) + zero, rounded half to even and clamped to the range of their type."""
    kind = zero.dtype if zero is not None else type_of(node["output_dtype"], node) if node["output_dtype"] else torch.uint8
    x = tensor_of(x).to(scale.dtype)
    codes = torch.round(x / _along(node, x, scale))
    if zero is not None:
        codes = codes + _along(node, x, zero).to(x.dtype)
    bounds = torch.iinfo(kind)
    return codes.clamp(bounds.min, bounds.max).to(kind)


@operator("DequantizeLinear")
def dequantize(node: Node, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(codes − zero) · scale."""
    along, offset = _along(node, codes, scale), None if zero is None else _along(node, codes, tensor_of(zero))
    codes = tensor_of(codes).to(scale.dtype)
    return codes * along if offset is None else (codes - offset.to(scale.dtype)) * along


@operator("DynamicQuantizeLinear")
def quantize_dynamically(_node: Node, x: Tensor) -> list[Tensor]:
    """Codes from 0 to 255 of the range of x extended to 0, their scale and their zero point."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / 255)
    zero = torch.round(-low / scale).clamp(0, 255)
    codes = (torch.round(x / scale) + zero).clamp(0, 255)
    return [codes.to(torch.uint8), scale, zero.to(torch.uint8)]


def _along(node: Node, x: Tensor, part: Tensor) -> Tensor:
    """A scale or zero point, shaped so that it broadcasts: one for the tensor, for each index of an axis, or for each block."""
    if part.numel() == 1:
        return part.reshape(())
    if node["block_size"]:
        axis = node["axis"] % x.ndim
        return part.repeat_interleave(node["block_size"], axis).narrow(axis, 0, x.shape[axis])
    if part.ndim > 1:
        return part
    return part.reshape([-1 if axis == node["axis"] % x.ndim else 1 for axis in range(x.ndim)])
