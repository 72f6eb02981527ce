"""Adaptive pooling in ONNX, where torch's exporter has no translation: one mean or maximum for each window of each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from mirabelle.errors import UserError


def pooling_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of adaptive pooling to ONNX operators (opset 18), for torch.onnx.export."""
    from onnxscript import opset18 as op

    def maximum(values: Any, output_size: Sequence[int]) -> tuple[Any]:
        return (_pooled(values, output_size, op.ReduceMax),)  # without the positions: who reads them is refused by the exporter

    aten = torch.ops.aten
    return {
        aten._adaptive_avg_pool3d.default: partial(_pooled, reduce=op.ReduceMean),
        aten.adaptive_max_pool2d.default: maximum,
        aten.adaptive_max_pool3d.default: maximum,
    }


def _pooled(values: Any, output_size: Sequence[int], reduce: Callable[..., Any]) -> Any:
    """Windows along one axis after the other: windows are products of ranges, so their mean or maximum is that of the parts.

    Window k of n of an axis with `size` positions is ⌊k·size / n⌋ … ⌈(k+1)·size / n⌉ − 1, as in torch.

    Raises:
        UserError: E121 if the size of an axis is not fixed.
    """
    from onnxscript import opset18 as op

    shape = tuple(values.shape)  # the values of an axis that is done have none yet
    for axis, count in enumerate(output_size, start=len(shape) - len(output_size)):
        size = shape[axis]
        if not isinstance(size, int):
            message = f"adaptive pooling reads axis {axis}, whose size is not fixed"
            raise UserError("E121", message, "give it a fixed size, or use a mean or maximum over the axis")
        along: Any = op.Constant(value_ints=[axis])
        parts = []
        for k in range(count):
            first: Any = op.Constant(value_ints=[k * size // count])
            last: Any = op.Constant(value_ints=[-(-(k + 1) * size // count)])
            parts.append(reduce(op.Slice(values, first, last, along), along, keepdims=1))
        values = op.Concat(*parts, axis=axis) if count > 1 else parts[0]
    return values
