"""Elementwise ONNX operators."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator, type_of
from mirabelle.sources.models.onnx_graph.values import Value, is_integers, tensor_of

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan, "Log": torch.log,
    "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
}  # fmt: skip


def _plainly(function: Callable[[Tensor], Tensor]) -> Callable[..., Value]:
    return lambda _node, x: function(tensor_of(x))


def _paired(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Value]:
    return lambda _node, a, b: function(*_both(a, b))


for _kind, _function in _PLAIN.items():
    operator(_kind)(_plainly(_function))
for _kind, _pair in _PAIRS.items():
    operator(_kind)(_paired(_pair))


def _both(a: Value, b: Value) -> tuple[Tensor, Tensor]:
    like = next((part for part in (a, b) if isinstance(part, Tensor)), None)
    return tensor_of(a, like), tensor_of(b, like)


@operator("Identity")
def identity(_node: Node, x: Value) -> Value:
    return x


@operator("Dropout")
def dropout(node: Node, x: Tensor, _ratio: Value = None, training: Tensor | None = None) -> Value:
    """Dropout in an inference graph: the identity, and a mask that is true everywhere."""
    if training is not None and bool(training):
        raise node.refuse("training_mode")
    return [x, torch.ones_like(x, dtype=torch.bool)] if len(node.outputs) > 1 else x


@operator("Div")
def divide(_node: Node, a: Value, b: Value) -> Tensor:
    one, other = _both(a, b)
    return torch.div(one, other) if one.is_floating_point() else torch.div(one, other, rounding_mode="trunc")


@operator("Mod")
def modulo(node: Node, a: Value, b: Value) -> Tensor:
    one, other = _both(a, b)
    return torch.fmod(one, other) if node["fmod"] else torch.remainder(one, other)


@operator("Pow")
def power(_node: Node, a: Value, b: Value) -> Tensor:
    one, other = _both(a, b)
    return torch.pow(one, other).to(one.dtype)


@operator("BitShift")
def shift(node: Node, a: Value, b: Value) -> Tensor:
    one, other = _both(a, b)
    moved = one.long() << other.long() if node["direction"] == "LEFT" else one.long() >> other.long()
    return moved.to(one.dtype)


@operator("Max", "Min", "Sum", "Mean")
def variadic(node: Node, *parts: Value) -> Tensor:
    pair = {"Max": torch.maximum, "Min": torch.minimum}.get(node.kind, torch.add)
    like = next((part for part in parts if isinstance(part, Tensor)), None)
    total: Tensor = functools.reduce(pair, [tensor_of(part, like) for part in parts])
    return total / len(parts) if node.kind == "Mean" else total


@operator("PRelu")
def prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


_ACTIVATIONS: dict[str, Callable[[Node, Tensor], Tensor]] = {
    "Celu": lambda node, x: F.celu(x, node["alpha"]),
    "Elu": lambda node, x: F.elu(x, node["alpha"]),
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node["alpha"]),
    "ThresholdedRelu": lambda node, x: torch.where(x > node["alpha"], x, torch.zeros_like(x)),
    "Selu": lambda node, x: node["gamma"] * torch.where(x > 0, x, node["alpha"] * torch.expm1(x)),
    "HardSigmoid": lambda node, x: torch.clamp(node["alpha"] * x + node["beta"], 0.0, 1.0),
    "Gelu": lambda node, x: F.gelu(x, approximate=node["approximate"]),
    "Swish": lambda node, x: x * torch.sigmoid(node["alpha"] * x),
}
for _kind, _activation in _ACTIVATIONS.items():
    operator(_kind)(_activation)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    bias, bound = node["bias"], node["lambd"]
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x))).to(x.dtype)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    low, high = (node[name] if bound is None else bound for name, bound in (("min", low), ("max", high)))
    bounds = [tensor_of(bound) if is_integers(bound) else bound for bound in (low, high)]
    x = tensor_of(x)
    for bound, pick in zip(bounds, (torch.maximum, torch.minimum), strict=True):
        if bound is not None:
            x = pick(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device))
    return x


@operator("IsInf")
def is_infinite(node: Node, x: Tensor) -> Tensor:
    return (x == math.inf) & bool(node["detect_positive"]) | (x == -math.inf) & bool(node["detect_negative"])


@operator("Where")
def where(_node: Node, condition: Value, a: Value, b: Value) -> Tensor:
    one, other = _both(a, b)
    return torch.where(tensor_of(condition).bool(), one, other)


@operator("Cast")
def cast(node: Node, x: Value) -> Tensor:
    return _cast(tensor_of(x), type_of(node["to"], node))


@operator("CastLike")
def cast_like(_node: Node, x: Value, like: Value) -> Tensor:
    return _cast(tensor_of(x), tensor_of(like).dtype)


def _cast(x: Tensor, to: torch.dtype) -> Tensor:
    return x != 0 if to == torch.bool else x.to(to)
