"""Elementwise operators: elements at the same position of operands and result are removed together, with broadcasting."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, name_of, sizes_of, value_of
from mirabelle.graph.flow import Flow, Results, broadcast, operands, untouched

NAMES = (
    "clone", "contiguous", "detach", "alias", "_to_copy", "to", "dropout", "feature_dropout", "lift_fresh_copy", "where",
    "masked_fill", "fill", "copy", "copy_", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "gelu", "silu", "hardtanh", "hardswish", "hardsigmoid", "elu", "celu", "selu", "mish",
    "softplus", "rrelu", "rrelu_with_noise", "lerp", "addcmul", "addcdiv", "nan_to_num", "clamp", "clip", "float_power",
    "__and__", "__or__", "__xor__", "logical_and", "logical_or", "fake_quantize_per_tensor_affine", "bernoulli",
    "alpha_dropout", "square", "isfinite", "isnan", "isinf", "softsign", "_softmax_backward_data",
    "log_sigmoid", "logsigmoid", "tanhshrink", "relu6", "hardshrink", "softshrink", "threshold", "_conj", "imag", "real",
    "multiply", "divide", "true_divide", "subtract", "absolute", "negative", "conj", "resolve_conj", "resolve_neg", "greater",
    "greater_equal", "less", "less_equal", "not_equal", "fix", "floor_divide", "complex", "polar",
)  # fmt: skip


def elementwise(flow: Flow, call: Call) -> Results:
    """Operands are broadcast and their axes tied."""
    value = value_of(call.node)
    if not isinstance(value, Tensor):
        return flow.freeze_all(call)
    return broadcast(flow, operands(call), sizes_of(value))


def tagged(node: fx.Node) -> bool:
    """Whether torch tags an operator as elementwise."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def is_elementwise(node: fx.Node) -> bool:
    """Whether a node is of this class."""
    return name_of(node) in NAMES or tagged(node)


def prelu(flow: Flow, call: Call) -> Results:
    """`prelu`: one slope for all elements, or one per channel."""
    axes = list(flow.of(call["self"]))
    slopes = flow.of(call["weight"])
    if slopes and sizes_of(value_of(call["weight"]))[0] > 1 and len(axes) > 1:
        flow.unify(axes[1], slopes[0])
    return flow.of(call["self"])


def glu(flow: Flow, call: Call) -> Results:
    """`glu`, x[: n / 2] · σ(x[n / 2 :]): the two halves of a dimension are tied."""
    sizes = sizes_of(value_of(call["self"]))
    axes = list(flow.of(call["self"]))
    d = int(call.get("dim", -1)) % len(sizes)
    axis = axes[d]
    if axis is not None:
        half = sizes[d] // 2
        flow.unify(axis[:half], axis[half:])
        axes[d] = flow.units.resolve(axis[:half])
    return tuple(axes)


def triangle(flow: Flow, call: Call) -> Results:
    """`triu` and `tril`: rows and columns of a square matrix are tied, those of other matrices frozen."""
    axes, sizes = list(flow.of(call["self"])), sizes_of(value_of(call["self"]))
    shift = int(call.get("diagonal", 0))
    kept_in_order = shift in ((0, 1) if call.name == "triu" else (0, -1))  # i ≤ j and i < j still hold after any removal
    if sizes[-1] == sizes[-2] and kept_in_order:
        flow.unify(axes[-1], axes[-2])
    else:
        flow.freeze(axes[-2:])
    return tuple(flow.units.resolve(axis) for axis in axes)


def first_alone(flow: Flow, call: Call) -> Results:
    """`type_as`: only the type of the other operand is read."""
    return flow.of(call["self"])


def dropped(flow: Flow, call: Call) -> Results:
    """Dropout that is always active: its result and its mask."""
    axes = flow.of(call["input"])
    return [axes, axes]


def as_real(flow: Flow, call: Call) -> Results:
    """Complex to real: real and imaginary parts become a new dimension, which is frozen."""
    return (*flow.of(call["self"]), None)


def as_complex(flow: Flow, call: Call) -> Results:
    """Real to complex: the dimension of real and imaginary parts disappears."""
    *axes, parts = flow.of(call["self"])
    flow.freeze([parts])
    return tuple(flow.units.resolve(axis) for axis in axes)


def nothing(flow: Flow, call: Call) -> Results:
    """Assertions and sizes: they return no tensor and tie nothing."""
    del flow
    return untouched(value_of(call.node))
