"""Times of single operators of many sizes in the runtime, measured together in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mirabelle.runtime.runtime import default_runtime

_OPSET = 18
_RUNS = 12
_MOST_AT_ONCE = 48  # operators in one graph


@dataclass(frozen=True)
class Operator:
    """An operator with a stored weight, of a given size.

    Args:
        kind: type of the ONNX operator: "Conv", "ConvTranspose" or "MatMul".
        shape: shape of the input.
        weight: shape of the weight in ONNX.
        attributes: (name, value) of the operator's attributes: strides, pads, dilations, group.
    """

    kind: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, int | tuple[int, ...]], ...] = ()


def milliseconds(operators: Sequence[Operator], threads: int) -> dict[Operator, float]:
    """The median milliseconds of each operator, without changes of the memory layout before and after it.

    Args:
        operators: the operators; equal ones are measured once.
        threads: number of threads of an operator.
    """
    distinct = list(dict.fromkeys(operators))
    found: dict[Operator, float] = {}
    for start in range(0, len(distinct), _MOST_AT_ONCE):
        found |= _measured(distinct[start : start + _MOST_AT_ONCE], threads)
    return found


def _measured(operators: Sequence[Operator], threads: int) -> dict[Operator, float]:
    model, feed = _graph(operators)
    times = default_runtime().operator_milliseconds(model.SerializeToString(), feed, threads=threads, runs=_RUNS)
    return {operator: float(np.median(times[_name(k)])) for k, operator in enumerate(operators)}


def _graph(operators: Sequence[Operator]) -> tuple[ModelProto, dict[str, Any]]:
    """(graph in which each operator has its own input, random arrays for the inputs)."""
    draw = np.random.default_rng(0)
    nodes, inputs, outputs, weights, feed = [], [], [], [], {}
    for k, operator in enumerate(operators):
        attributes: dict[str, Any] = dict(operator.attributes)
        x, weight, y = f"x_{k}_", f"w_{k}_", _name(k)
        nodes.append(helper.make_node(operator.kind, [x, weight], [y], name=y, **attributes))
        inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, operator.shape))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * len(operator.shape)))
        weights.append(numpy_helper.from_array(draw.standard_normal(operator.weight, np.float32), weight))
        feed[x] = draw.standard_normal(operator.shape, np.float32)
    graph = helper.make_graph(nodes, "operators", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9), feed


def _name(position: int) -> str:
    """The name of an operator and of its output; because of the last "_", no name is a prefix of another one."""
    return f"op_{position}_"
