"""ONNX operators between floating-point numbers and integer codes."""

from __future__ import annotations

from typing import Any

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


@operator("Requantize")
def requantize(node: Node, y: Tensor, *scales: Any) -> Tensor:
    """Codes of a product of integers with weights that are integers times a scale; it is no operator of the standard.

    The quotient of the product and the scale is the sum that integer kernels compute, and is rounded to it. Then the bias is
    added, and the sum is scaled in the way of these kernels, so that the codes are the same. Without a scale of the result, it
    is a floating-point number.
    """
    x_scale, weight_scale, scale, zero, bias = (*scales, None, None, None)[:5]
    sums = torch.round(y / _along(node, y, weight_scale))
    if bias is not None:
        sums = sums + _along(node, y, tensor_of(bias)).to(y.dtype)
    if scale is None:
        return sums * _along(node, y, x_scale * weight_scale)
    sums = sums * _along(node, y, x_scale * weight_scale / scale)
    return _clamped(torch.round(sums) + (0 if zero is None else tensor_of(zero).to(y.dtype)), zero)


@operator("QLinearAdd", "QLinearMul")
def on_codes(node: Node, *operands: Any) -> Tensor:
    """Codes of a sum or product of two coded tensors, with the zero point added before rounding, as ONNX Runtime does."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = (*operands, None)[:8]
    first, second, offset = (_float(part) for part in (a_zero, b_zero, zero))
    if node.kind == "QLinearMul":
        product = (_float(a) - first) * (_float(b) - second)
        return _clamped(torch.round(product * (a_scale * b_scale / scale) + offset), zero, a)
    a_ratio, b_ratio = a_scale / scale, b_scale / scale
    total = (offset - (a_ratio * first + b_ratio * second)) + _float(a) * a_ratio + _float(b) * b_ratio
    return _clamped(torch.round(total), zero, a)


def _float(codes: Any) -> Tensor:
    return torch.zeros(()) if codes is None else tensor_of(codes).float()


def _clamped(codes: Tensor, zero: Tensor | None, like: Tensor | None = None) -> Tensor:
    """Rounded numbers as codes of the type of the zero point, or of another tensor, by default uint8."""
    kind = next((part.dtype for part in (zero, like) if part is not None), torch.uint8)
    bounds = torch.iinfo(kind)
    return codes.clamp(bounds.min, bounds.max).to(kind)


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
