"""Affine quantization: real = scale · (code − zero_point).

Values are rounded half to even, as by QuantizeLinear of ONNX and by torch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Quantize values to codes: clamp(round(values / scale) + zero_point, low, high).

    Args:
        values: any shape.
        scale: broadcastable to `values`.
        zero_point: broadcastable to `values`.
        low: smallest code.
        high: largest code.

    Returns:
        The codes, as floats of the shape of `values`.

    Example:
        >>> quantize(torch.tensor([0.24, -9.0]), torch.tensor(0.1), torch.tensor(0.0), -8, 7)
        tensor([ 2., -8.])
    """
    return (torch.round(values / scale) + zero_point).clamp(low, high)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Dequantize symmetric codes: scale · code.

    Args:
        codes: integers of any shape.
        scale: one value per index of the first axis of `codes`, or a single value of shape (1,).

    Example:
        >>> dequantize(torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), torch.tensor([0.5, 10.0]))
        tensor([[ 0.5000,  1.0000],
                [30.0000, 40.0000]])
    """
    return codes.to(scale.dtype) * scale.reshape(-1, *[1] * (codes.dim() - 1))


def asymmetric_parameters(low: Tensor, high: Tensor, levels: int = 256) -> tuple[Tensor, Tensor]:
    """Scale and zero point that map the range [low, high], extended to contain 0, to the codes 0 … levels − 1.

    scale = (high − low) / (levels − 1), zero_point = round(−low / scale). For a range of zero width the scale is 1.

    Source: ONNX operator DynamicQuantizeLinear.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / (levels - 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, torch.round(-low / scale).clamp(0, levels - 1)


def symmetric_scales(rows: Tensor, high: int, candidates: int = 24) -> Tensor:
    """For each row of weights, the symmetric scale with the smallest squared quantization error.

    s* = argmin_s Σ_i (w_i − s · clamp(round(w_i / s), −high, high))², over `candidates` values of s from 0.4 to 1 times max|w|
    / high

    Scales are rounded to bfloat16, so that each takes two bytes; this changes a scale by at most 0.4 %. The scale of a row of
    zeros is 1.

    Args:
        rows: weights, (rows, elements).
        high: largest code.
        candidates: number of scales to try.

    Returns:
        Scales, (rows,).
    """
    largest = rows.abs().amax(dim=1)
    best_scale = torch.ones_like(largest)
    best_error = torch.full_like(largest, torch.inf)
    for fraction in torch.linspace(1.0, 0.4, candidates).tolist():
        scale = (largest * fraction / high).bfloat16().to(rows.dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        step = scale[:, None]
        error = (rows - quantize(rows, step, torch.zeros_like(step), -high, high) * step).square().sum(dim=1)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale
