"""Milliseconds of single operators in the runtime, at many sizes, measured side by side in one graph."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mirabelle.runtime.onnxruntime import library, options_for

_OPSET = 18
_RUNS = 12
_MOST_AT_ONCE = 48  # operators in one graph


@dataclass(frozen=True)
class Operator:
    """One operator with stored weights, at one size.

    Args:
        kind: "Conv", "ConvTranspose" or "MatMul", as ONNX has them.
        shape: of what goes in.
        weight: shape of the weight as ONNX has it.
        attributes: strides, pads, dilations, group, by name.
    """

    kind: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, int | tuple[int, ...]], ...] = ()


def milliseconds(operators: Sequence[Operator], threads: int) -> dict[Operator, float]:
    """The median time of each operator's kernel in ONNX Runtime, without what stands before and after it.

    Args:
        operators: each is measured once, however often it is given.
        threads: of one operator.
    """
    distinct = list(dict.fromkeys(operators))
    found: dict[Operator, float] = {}
    for start in range(0, len(distinct), _MOST_AT_ONCE):
        found |= _measured(distinct[start : start + _MOST_AT_ONCE], threads)
    return found


def _measured(operators: Sequence[Operator], threads: int) -> dict[Operator, float]:
    model, feed = _graph(operators)
    with tempfile.TemporaryDirectory() as folder:
        options = options_for(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = library().InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    times: dict[int, list[float]] = defaultdict(list)
    for event in events:
        name, kind = event["name"], event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and name.endswith("_kernel_time") and kind not in ("ReorderInput", "ReorderOutput"):
            times[int(name.split("_")[1])].append(event["dur"] / 1e3)
    return {operator: float(np.median(times[k])) for k, operator in enumerate(operators)}


def _graph(operators: Sequence[Operator]) -> tuple[ModelProto, dict[str, Any]]:
    """Every operator by itself, from an input of its own: operator 3 is "op_3_"."""
    draw = np.random.default_rng(0)
    nodes, inputs, outputs, weights, feed = [], [], [], [], {}
    for k, operator in enumerate(operators):
        attributes: dict[str, Any] = dict(operator.attributes)
        x, weight, y = f"x_{k}_", f"w_{k}_", f"op_{k}_"
        nodes.append(helper.make_node(operator.kind, [x, weight], [y], name=y, **attributes))
        inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, operator.shape))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * len(operator.shape)))
        weights.append(numpy_helper.from_array(draw.standard_normal(operator.weight, np.float32), weight))
        feed[x] = draw.standard_normal(operator.shape, np.float32)
    graph = helper.make_graph(nodes, "operators", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9), feed
