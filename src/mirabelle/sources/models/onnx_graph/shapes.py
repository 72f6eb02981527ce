"""ONNX operators on shape integers, and on numbers from them, with which files compute shapes from shapes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirabelle.sources.models.onnx_graph import elementwise, shaping
from mirabelle.sources.models.onnx_graph.nodes import Node, on_integers, type_of
from mirabelle.sources.models.onnx_graph.shaping import axes_of
from mirabelle.sources.models.onnx_graph.values import Integers, Value, integers, integers_of, tensor_of


def _divided(a: Any, b: Any) -> Any:
    """The quotient; of integers that towards zero."""
    if isinstance(a, (float, torch.SymFloat)):
        return a / b
    if isinstance(a, int) and isinstance(b, int) and (a < 0) != (b < 0):
        return -(-a // b) if b > 0 else -(a // -b)
    return a // b


def _number(item: Any) -> Any:
    return torch.sym_float(item)  # type: ignore[no-untyped-call]


_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": _divided, "Mod": operator.mod,
    "Max": torch.sym_max, "Min": torch.sym_min,
    "Equal": operator.eq, "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le, "And": operator.and_, "Or": operator.or_,
}  # fmt: skip


def _each(function: Callable[..., Any], *parts: Integers) -> Integers:
    """Apply a function of single integers elementwise to arrays, with broadcasting."""
    spread = np.broadcast_arrays(*parts)
    return integers([function(*items) for items in zip(*(part.flat for part in spread), strict=True)], spread[0].shape)


def _paired(function: Callable[[Any, Any], Any]) -> Callable[..., Value]:
    return lambda _node, *parts: functools.reduce(lambda a, b: _each(function, a, b), parts)


for _kind, _function in _PAIRS.items():
    on_integers(_kind)(_paired(_function))


@on_integers("Not", "Neg", "Abs", "Floor", "Ceil")
def alone(node: Node, x: Integers) -> Integers:
    functions: dict[str, Callable[[Any], Any]] = {
        "Not": torch.sym_not, "Neg": operator.neg, "Abs": abs,
        "Floor": lambda a: _number(math.floor(a)), "Ceil": lambda a: _number(math.ceil(a)),
    }  # fmt: skip
    return _each(functions[node.kind], x)


@on_integers("Where")
def where(_node: Node, condition: Integers, a: Integers, b: Integers) -> Integers:
    return _each(lambda chosen, one, other: one if chosen else other, condition, a, b)


@on_integers("Cast")
def cast(node: Node, x: Integers) -> Value:
    to = type_of(node["to"], node)
    if to in (torch.float32, torch.float64):
        return _each(_number, x)
    if to in (torch.int64, torch.int32):
        return _each(torch.sym_int, x)
    return elementwise.cast(node, tensor_of(x))


@on_integers("Squeeze")
def squeeze(node: Node, x: Integers, axes: Value = None) -> Integers:
    return x.squeeze(axes_of(node, axes))


@on_integers("Unsqueeze")
def unsqueeze(node: Node, x: Integers, axes: Value = None) -> Integers:
    return np.expand_dims(x, axes_of(node, axes) or ())


@on_integers("Concat")
def concat(node: Node, *parts: Integers) -> Integers:
    return np.concatenate(parts, node["axis"])


@on_integers("Split")
def split(node: Node, x: Integers, sizes: Value = None) -> list[Integers]:
    axis, found = node["axis"] or 0, node["split"] if sizes is None else integers_of(sizes)
    if found is None:
        found = [-(-x.shape[axis] // len(node.outputs))] * len(node.outputs)
    return list(np.split(x, np.cumsum(found)[:-1].astype(int), axis))


@on_integers("Reshape")
def reshape(_node: Node, x: Integers, target: Value) -> Integers:
    lengths = integers_of(target)
    return x.reshape([x.shape[axis] if length == 0 else length for axis, length in enumerate(lengths)])


@on_integers("Transpose")
def transpose(node: Node, x: Integers) -> Integers:
    return x.transpose(node["perm"])


@on_integers("Slice")
def slice_(node: Node, x: Integers, *bounds: Value) -> Integers:
    starts, ends, axes, steps = (*bounds, None, None)[:4]
    begins, stops = integers_of(starts), integers_of(ends)
    where_, strides = axes_of(node, axes) or range(len(begins)), integers_of(steps) if steps is not None else [1] * len(begins)
    index: list[Any] = [slice(None)] * x.ndim
    for axis, begin, stop, stride in zip(where_, begins, stops, strides, strict=True):
        index[axis] = slice(begin, None if stride < 0 and stop < -x.shape[axis] else stop, stride)
    found: Integers = x[tuple(index)]
    return found


@on_integers("Gather")
def gather(node: Node, x: Integers, index: Integers) -> Integers:
    return integers_at(x, index, node["axis"] or 0)


def integers_at(x: Integers, index: Integers, axis: int) -> Integers:
    """Elements of an array of integers at these indices along an axis."""
    found = np.take(x, index.astype(int), axis)
    return found if isinstance(found, np.ndarray) else integers(found)


@on_integers("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def reduce(node: Node, x: Integers, axes: Value = None) -> Value:
    if x.ndim > 1:
        from mirabelle.sources.models.onnx_graph.reducing import reduce as of_tensors

        return of_tensors(node, tensor_of(x), axes)
    pairs = {"ReduceProd": operator.mul, "ReduceSum": operator.add, "ReduceMax": torch.sym_max, "ReduceMin": torch.sym_min}
    total: Any = functools.reduce(pairs[node.kind], x.flat)
    return integers([total] if node["keepdims"] else total)


@on_integers("ConstantOfShape")
def constant_of_shape(node: Node, sizes: Integers) -> Value:
    value, lengths = node["value"], integers_of(sizes)
    if isinstance(value, Tensor) and value.dtype == torch.int64 and len(lengths) == 1 and isinstance(lengths[0], int):
        return integers([int(value)] * lengths[0])
    return shaping.constant_of_shape(node, sizes)


@on_integers("Expand")
def expand(node: Node, x: Integers, target: Integers) -> Value:
    lengths = integers_of(target)
    if all(isinstance(length, int) for length in lengths) and len(lengths) <= 1:
        return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, lengths)))
    return shaping.expand(node, x, target)
