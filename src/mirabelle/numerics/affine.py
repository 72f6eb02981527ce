"""Affine quantization: real = scale · (code − zero_point).

Values are rounded half to even, as by QuantizeLinear of ONNX and by torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 1 << 16  # weights whose scales are searched together
_SURELY = 1.001  # more than sums of squares are rounded by


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
        scale: one value per index of the first axis of `codes`, or a scalar or (1,) for all.

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
    count = max(2, _AT_ONCE // max(rows.shape[1], 1))
    starts = list(range(0, max(rows.shape[0] - 1, 1), count))  # one row alone would be summed in another order
    parts = [rows[start:end] for start, end in zip(starts, [*starts[1:], rows.shape[0]], strict=True)]
    return torch.cat([_scales(part, high, candidates) for part in parts])


def _scales(rows: Tensor, high: int, candidates: int) -> Tensor:
    """`symmetric_scales` of so few rows that they stay in the processor's cache."""
    largest = rows.abs().amax(dim=1)
    best_scale = torch.ones_like(largest)
    best_error = torch.full_like(largest, torch.inf)
    values = torch.empty_like(rows)
    for fraction in torch.linspace(1.0, 0.4, candidates).tolist():
        scale = (largest * fraction / high).bfloat16().to(rows.dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if not _open(largest - scale * high, best_error):
            break
        step = scale[:, None]
        torch.div(rows, step, out=values).round_().clamp_(-high, high).mul_(step).sub_(rows).square_()
        error = values.sum(dim=1)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale


def _open(clipped: Tensor, best_error: Tensor) -> bool:
    """Whether a smaller scale may lower the error of a row: not if the error of its largest weight alone is above the best."""
    return bool(((clipped.clamp(min=0).square() <= _SURELY * best_error) & (best_error > 0)).any())
