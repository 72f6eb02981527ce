"""GELU and attention in ONNX, in the forms that runtimes join into one operator, with torch's meaning for rows without any key.

Torch's exporter writes GELU in an order that ONNX Runtime does not recognize, and attention with the shapes of every layer
computed anew and a guard against NaN after every softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import torch

from mirabelle.errors import UserError

_MATRIX = 2  # dimensions of a matrix


def fused_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of GELU and attention to ONNX operators (opset 18), for torch.onnx.export."""
    aten = torch.ops.aten
    return {
        aten.gelu.default: _gelu,
        aten.scaled_dot_product_attention.default: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention,
    }


def _gelu(x: Any, approximate: str = "none") -> Any:
    """x · (1 + erf(x / √2)) · ½, or x · ½ · (1 + tanh(x · √(2/π) · (1 + 0.044715 · x²)))."""
    from onnxscript import opset18 as op

    if approximate == "tanh":
        inner = op.Add(op.Mul(op.Mul(x, _number(0.044715, x)), x), _number(1.0, x))
        tanh = op.Tanh(op.Mul(op.Mul(x, _number(sqrt(2 / pi), x)), inner))
        return op.Mul(op.Mul(x, _number(0.5, x)), op.Add(tanh, _number(1.0, x)))
    erf = op.Erf(op.Div(x, _number(sqrt(2.0), x)))
    return op.Mul(op.Mul(x, op.Add(erf, _number(1.0, x))), _number(0.5, x))


def _attention(  # noqa: PLR0917 (the interface is that of torch, as below)
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """softmax(scale · q · kᵀ + mask) · v; a row of the mask without any key gives 0, as in torch.

    Places that are masked get the smallest number instead of −∞, which gives the same probabilities, exactly 0, where a row has
    a key. For a row without one, −∞ would give NaN; there the result is multiplied by 0, and elsewhere by 1. The factor is left
    out where every row is known to have a key: without a mask, and with a causal one. Dropout is not applied.
    """
    from onnxscript import opset18 as op

    del dropout_p
    rank = len(key.shape)
    axes = [*range(rank - _MATRIX), rank - 1, rank - _MATRIX]
    if enable_gqa:
        key, value = (_repeated(part, query) for part in (key, value))
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=axes)), _scale(query) if scale is None else _number(scale, query))
    if is_causal:
        bias, has_key = _masked(_causal(query, key, rank), query), None
    elif attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    elif attn_mask.dtype == query.dtype:
        bias, has_key = _finite(attn_mask)
    else:
        bias, has_key = _masked(attn_mask, query), _any(attn_mask, query)
    result = op.MatMul(op.Softmax(op.Add(scores, bias), axis=-1), value)
    return result if has_key is None else op.Mul(result, has_key)


def _flash_attention(  # noqa: PLR0917
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    attn_mask: Any = None,
    scale: float | None = None,
) -> tuple[Any]:
    return (_attention(query, key, value, attn_mask, dropout_p, is_causal, scale),)


def _scale(query: Any) -> Any:
    """1 / √width of the queries."""
    from onnxscript import opset18 as op

    width = query.shape[-1]
    if isinstance(width, int):
        return _number(1 / sqrt(width), query)
    number: Any = op.Cast(op.Shape(query, start=len(query.shape) - 1), to=query.dtype)
    root: Any = op.Sqrt(number)
    return op.Reciprocal(root)


def _masked(mask: Any, like: Any) -> Any:
    """0 where a mask is true, else the smallest number."""
    from onnxscript import opset18 as op

    return op.Where(mask, _number(0.0, like), _number(like.dtype.min, like))


def _any(mask: Any, like: Any) -> Any:
    """1 for each row of a mask with a true element, else 0; the last axis is kept with length 1."""
    from onnxscript import opset18 as op

    last: Any = op.Constant(value_ints=[-1])
    numbers: Any = op.Cast(mask, to=like.dtype)
    return op.ReduceMax(numbers, last, keepdims=1)


def _finite(mask: Any) -> tuple[Any, Any]:
    """A mask that is added, with −∞ replaced by the smallest number, and 1 for each row that has more than −∞, else 0."""
    from onnxscript import opset18 as op

    least = _number(mask.dtype.min, mask)
    last: Any = op.Constant(value_ints=[-1])
    has_key = op.GreaterOrEqual(op.ReduceMax(mask, last, keepdims=1), least)
    return op.Max(mask, least), op.Cast(has_key, to=mask.dtype)


def _causal(query: Any, key: Any, rank: int) -> Any:
    """Whether a query may see a key, (queries, keys): keys up to its own position."""
    from onnxscript import opset18 as op

    def positions(tensor: Any) -> Any:
        length = op.Squeeze(op.Shape(tensor, start=rank - _MATRIX, end=rank - 1))
        zero: Any = op.Constant(value_int=0)
        one: Any = op.Constant(value_int=1)
        return op.Range(zero, length, one)

    last: Any = op.Constant(value_ints=[1])
    return op.GreaterOrEqual(op.Unsqueeze(positions(query), last), positions(key))


def _repeated(part: Any, query: Any) -> Any:
    """Keys or values (batch, groups, length, width) with each group repeated for its heads (batch, heads, length, width)."""
    from onnxscript import opset18 as op

    groups, heads, rank = part.shape[-3], query.shape[-3], len(part.shape)
    if not isinstance(groups, int) or not isinstance(heads, int):
        raise UserError("E121", "the number of heads of an attention is not fixed", "give it a fixed number of heads")
    if groups == heads:
        return part
    after: Any = op.Constant(value_ints=[rank - 2])
    times: Any = op.Constant(value_ints=[1] * (rank - 2) + [heads // groups, 1, 1])
    own: Any = op.Constant(value_ints=[0] * (rank - 3) + [heads, -1, part.shape[-1]])
    return op.Reshape(op.Expand(op.Unsqueeze(part, after), times), own)


def _number(value: float, like: Any) -> Any:
    """A scalar of the type of a tensor."""
    from onnxscript import ir
    from onnxscript import opset18 as op

    scalar: Any = ir.tensor(value, dtype=like.dtype)
    return op.Constant(value=scalar)
