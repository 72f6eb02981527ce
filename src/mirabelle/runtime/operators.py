"""Custom operators for quantized layers: their computation in torch and their translation to ONNX.

`mirabelle::fake_quantize` rounds activations to uint8 levels. `mirabelle::dequantize` keeps integer codes in the exported file,
and so does `mirabelle::decode` for weight-only quantization. `mirabelle::dynamic_linear` quantizes its input by the range of
the current batch, like ONNX DynamicQuantizeLinear, and `mirabelle::token_linear` each vector of its input by its largest
absolute value. Importing this module registers the operators with torch. They have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics import affine

_TOKEN_STEP = float(np.float32(1 / 127))  # quantization step relative to a vector's largest value; the same in ONNX
_LEAST = 1e-30  # divisor for a vector of zeros
_INT8 = (-128, 127, torch.int8)
_UNSIGNED = 128  # codes of uint8 less this are codes of int8


@torch.library.custom_op("mirabelle::fake_quantize", mutates_args=())
def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round values to the levels scale · (code − zero_point), with code in 0 … 255.

    Args:
        values: any shape.
        scale: scalar.
        zero_point: scalar, uint8.
    """
    zero = zero_point.to(values.dtype)
    return (affine.quantize(values, scale, zero, 0, 255) - zero) * scale


@fake_quantize.register_fake
def _(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    del scale, zero_point
    return torch.empty_like(values)


@torch.library.custom_op("mirabelle::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """scale · code.

    Args:
        codes: integers, (n, ...).
        scale: one value for each index of the first axis, (n,), or a scalar for all.
    """
    return affine.dequantize(codes, scale)


@torch.library.custom_op("mirabelle::decode", mutates_args=())
def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """scale · code, for weights that are used in floating point (weight-only quantization).

    It is exported as a Cast, because ONNX Runtime would round the other factor of a matrix product with the output of
    DequantizeLinear to 8 bits too.

    Args:
        codes: integers, (n, ...).
        scale: one value for each index of the first axis, (n,), or a scalar for all.
    """
    return affine.dequantize(codes, scale)


@dequantize.register_fake
@decode.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(codes.shape, dtype=scale.dtype, device=codes.device)


@torch.library.custom_op("mirabelle::dynamic_linear", mutates_args=())
def dynamic_linear(inputs: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """inputs · weightᵀ, with the inputs rounded to 256 levels over their current range.

    Args:
        inputs: (..., in).
        codes: int8 weights, (in, out).
        scale: scales of the weights, (out,).
    """
    input_scale, zero_point = affine.asymmetric_parameters(*inputs.aminmax())
    levels = affine.quantize(inputs, input_scale, zero_point, 0, 255) - zero_point
    return F.linear(levels, codes.to(levels.dtype).t()) * (input_scale * scale)


@torch.library.custom_op("mirabelle::token_linear", mutates_args=())
def token_linear(inputs: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """inputs · weightᵀ, with each vector of the inputs rounded to 255 levels between ± its largest absolute value.

    Args:
        inputs: (..., in).
        codes: int8 weights, (in, out).
        scale: scales of the weights, (out,).
    """
    largest = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST)
    levels = torch.round(inputs * largest.reciprocal() / _TOKEN_STEP)
    return F.linear(levels, codes.to(levels.dtype).t()) * (_TOKEN_STEP * scale) * largest


@dynamic_linear.register_fake
@token_linear.register_fake
def _(inputs: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    del scale
    return inputs.new_empty((*inputs.shape[:-1], codes.shape[1]))


_PRODUCTS = torch.ops.mirabelle.dynamic_linear.default, torch.ops.mirabelle.token_linear.default
TRANSPOSED_CODES = _PRODUCTS  # their codes are (in, out)
CODED = (
    torch.ops.mirabelle.dequantize.default,
    torch.ops.mirabelle.decode.default,
    *_PRODUCTS,
)  # their last arguments are codes and scales


def torch_translations() -> dict[Any, Callable[..., Tensor]]:
    """Translations of the custom operators to those of torch, `torch.ops.quantized_decomposed`.

    They take scalars as numbers, the codes of `TRANSPOSED_CODES` as (out, in), and for `CODED` also the zero points of the
    codes, (out,). Activations have codes of int8, for which converters have kernels; these stand for the same values as ours
    of uint8.
    """
    import torch.ao.quantization.fx._decomposed  # registers the operators with torch

    ops = torch.ops.quantized_decomposed

    def rounded(values: Tensor, scale: Any, zero_point: Any, kind: str = "default") -> Tensor:
        codes = getattr(ops.quantize_per_tensor, kind)(values, scale, zero_point, *_INT8)
        result: Tensor = getattr(ops.dequantize_per_tensor, kind)(codes, scale, zero_point, *_INT8)
        return result

    def torch_fake_quantize(values: Tensor, scale: float, zero_point: int) -> Tensor:
        return rounded(values, scale, zero_point - _UNSIGNED)

    def torch_dequantize(codes: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
        result: Tensor = ops.dequantize_per_channel(codes, scale, zero_points, 0, *_INT8)
        return result

    def torch_dynamic_linear(inputs: Tensor, codes: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
        input_scale, zero_point = ops.choose_qparams.tensor(inputs, *_INT8[:2], torch.finfo(torch.float32).tiny, torch.int8)
        return F.linear(rounded(inputs, input_scale, zero_point, "tensor"), torch_dequantize(codes, scale, zero_points))

    def torch_token_linear(inputs: Tensor, codes: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
        largest = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST)
        levels = rounded(inputs * largest.reciprocal(), _TOKEN_STEP, 0)
        return F.linear(levels, torch_dequantize(codes, scale, zero_points)) * largest

    return {
        torch.ops.mirabelle.fake_quantize.default: torch_fake_quantize,
        torch.ops.mirabelle.dequantize.default: torch_dequantize,
        torch.ops.mirabelle.decode.default: torch_dequantize,
        torch.ops.mirabelle.dynamic_linear.default: torch_dynamic_linear,
        torch.ops.mirabelle.token_linear.default: torch_token_linear,
    }


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of the custom operators to ONNX operators (opset 18), for torch.onnx.export."""
    from onnx import numpy_helper
    from onnxscript import opset18 as op

    def onnx_fake_quantize(values: Any, scale: Any, zero_point: Any) -> Any:
        return op.DequantizeLinear(op.QuantizeLinear(values, scale, zero_point), scale, zero_point)

    def onnx_dequantize(codes: Any, scale: Any) -> Any:
        # Zero points of 0 change nothing, but without them ONNX Runtime computes Gemm in floating point, eight times slower.
        zeros = np.zeros(tuple(scale.shape), codes.dtype.numpy())
        return op.DequantizeLinear(codes, scale, op.Constant(value=numpy_helper.from_array(zeros)), axis=0)

    def onnx_decode(codes: Any, scale: Any) -> Any:
        # The exporter would fold a Cast into float weights; `export` replaces this node by a Cast later.
        one: Any = op.Constant(value_float=1.0)
        axes: Any = op.Constant(value_ints=list(range(1, len(codes.shape))))
        return op.Mul(op.DequantizeLinear(codes, one), op.Unsqueeze(scale, axes))

    def onnx_dynamic_linear(inputs: Any, codes: Any, scale: Any) -> Any:
        levels, input_scale, zero_point = op.DynamicQuantizeLinear(inputs)
        product = op.Cast(op.MatMulInteger(levels, codes, zero_point), to=1)
        return op.Mul(product, op.Mul(input_scale, scale))

    def onnx_token_linear(inputs: Any, codes: Any, scale: Any) -> Any:
        # Levels are unsigned with zero point 128, because ONNX Runtime is fastest for uint8 inputs and int8 weights. Runtimes
        # compute a product of dequantized factors by one operator; MatMulInteger with its cast and products would be four.
        step: Any = op.Constant(value=numpy_helper.from_array(np.array(_TOKEN_STEP, np.float32)))
        middle: Any = op.Constant(value=numpy_helper.from_array(np.array(128, np.uint8)))
        zeros: Any = op.Constant(value=numpy_helper.from_array(np.zeros(tuple(scale.shape), np.int8)))
        last: Any = op.Constant(value_ints=[-1])
        largest = op.Max(op.ReduceMax(op.Abs(inputs), last), op.Constant(value_float=_LEAST))
        levels = op.QuantizeLinear(op.Mul(inputs, op.Reciprocal(largest)), step, middle)
        product = op.MatMul(op.DequantizeLinear(levels, step, middle), op.DequantizeLinear(codes, scale, zeros, axis=1))
        return op.Mul(product, largest)

    return {
        torch.ops.mirabelle.fake_quantize.default: onnx_fake_quantize,
        torch.ops.mirabelle.dequantize.default: onnx_dequantize,
        torch.ops.mirabelle.decode.default: onnx_decode,
        torch.ops.mirabelle.dynamic_linear.default: onnx_dynamic_linear,
        torch.ops.mirabelle.token_linear.default: onnx_token_linear,
    }
