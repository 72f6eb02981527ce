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
    codes = _rounded(x / _along(node, x, scale))
    return _clamped(codes if zero is None else codes + _along(node, x, zero).to(x.dtype), kind)


@operator("DequantizeLinear")
def dequantize(node: Node, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(codes − zero) · scale."""
    along, offset = _along(node, codes, scale), None if zero is None else _along(node, codes, tensor_of(zero))
    codes = tensor_of(codes).to(scale.dtype)
    return codes * along if offset is None else (codes - offset.to(scale.dtype)) * along


@operator("DynamicQuantizeLinear")
def quantize_dynamically(_node: Node, x: Tensor) -> list[Tensor]:
    """Codes from 0 to 255 of the range of x extended to 0, their scale and their zero point."""
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / 255)
    zero = torch.round(-low / scale).clamp(0, 255)
    return [_clamped(_rounded(x / scale) + zero, torch.uint8), scale, zero.to(torch.uint8)]


@operator("IntegerSums")
def integer_sums(_node: Node, x: Tensor) -> Tensor:
    """Sums of products of integers as int32; it is no operator of the standard."""
    return _clamped(_rounded(x), torch.int32)


@operator("Requantize")
def requantize(node: Node, y: Tensor, *scales: Any) -> Tensor:
    """Codes of a product of integers with weights that are integers times a scale; it is no operator of the standard.

    The quotient of the product and the scale is the sum that integer kernels compute, and is rounded to it. Then the bias is
    added, and the sum is scaled in the way of these kernels, so that the codes are the same. Without a scale of the result, it
    is a floating-point number.
    """
    x_scale, weight_scale, scale, zero, bias = (*scales, None, None, None)[:5]
    sums = _rounded(y / _along(node, y, weight_scale))
    if bias is not None:
        sums = sums + _along(node, y, tensor_of(bias)).to(y.dtype)
    if scale is None:
        return sums * _along(node, y, x_scale * weight_scale)
    codes = _rounded(sums * _along(node, y, x_scale * weight_scale / scale)) + _float(zero)
    return _clamped(codes, torch.uint8 if zero is None else zero.dtype)


@operator("QLinearAdd", "QLinearMul")
def on_codes(node: Node, *operands: Any) -> Tensor:
    """Codes of a sum or product of two coded tensors, with the zero point added before rounding, as ONNX Runtime does."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = (*operands, None)[:8]
    first, second, offset = (_float(part) for part in (a_zero, b_zero, zero))
    if node.kind == "QLinearMul":
        total = (_float(a) - first) * (_float(b) - second) * (a_scale * b_scale / scale) + offset
    else:
        a_ratio, b_ratio = a_scale / scale, b_scale / scale
        total = (offset - (a_ratio * first + b_ratio * second)) + _float(a) * a_ratio + _float(b) * b_ratio
    return _clamped(_rounded(total), a.dtype if zero is None else zero.dtype)


def _float(codes: Any) -> Tensor:
    return torch.zeros(()) if codes is None else tensor_of(codes).float()


def _rounded(x: Tensor) -> Tensor:
    """Rounded half to even; in a training with the gradient of x itself (a straight-through estimator)."""
    return x + (torch.round(x) - x).detach() if _is_trained(x) else torch.round(x)


def _clamped(codes: Tensor, kind: torch.dtype) -> Tensor:
    """Rounded numbers as codes of a type; in a training they stay numbers, since integers have no gradient."""
    bounds = torch.iinfo(kind)
    within = codes.clamp(bounds.min, bounds.max)
    return within if _is_trained(within) else within.to(kind)


def _is_trained(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


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
