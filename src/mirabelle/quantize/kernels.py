"""Which kernel computes a layer with few bits per weight: decided by timing both in the runtime, for each size once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mirabelle.model.watch import LayerRun, watch
from mirabelle.quantize.dense_layers import weight_of
from mirabelle.quantize.group_layer import Kernel
from mirabelle.run.run import Run
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.batch import Batch
from mirabelle.task.task import Task

_RUNS = 25
_FASTER = 0.95  # of the time of float, at most, for a kernel to be used

Size = tuple[int, int, int]  # inputs at once, inputs, outputs of a linear layer


def faster_kernels(
    layers: Mapping[str, nn.Module], model: nn.Module, task: Task, run: Run, *, bits: int, group_size: int, batch: int
) -> dict[str, Kernel]:
    """The faster kernel of each linear layer, by name: MatMulNBits if it takes at most 95 % of the time of float weights.

    Each size of a layer is timed once, alone, with random numbers, on as many inputs at once as the layer gets for a batch of
    the example. The decision is recorded, so that a repeated run gives the same model.

    Args:
        layers: linear layers of the model, by name; one that does not run is computed in float.
        model: the model.
        task: gives the example.
        run: records the decision, and has the number of threads.
        bits: per weight.
        group_size: weights of a group.
        batch: number of samples of a call.
    """
    sizes = _sizes(layers, model, task.example(), batch)
    threads = int(run.decided("threads") or torch.get_num_threads())

    def measured() -> str:
        return json.dumps([size for size in dict.fromkeys(sizes.values()) if _gains(size, bits, group_size, threads)])

    chosen = {tuple(size) for size in json.loads(run.decide("kernels", measured))}
    return {name: "MatMulNBits" if sizes.get(name) in chosen else "float" for name in layers}


def _sizes(layers: Mapping[str, nn.Module], model: nn.Module, example: Batch, batch: int) -> dict[str, Size]:
    found: dict[str, Size] = {}

    def look(run: LayerRun) -> None:
        assert run.input is not None, "linear layers take a tensor"
        outputs, inputs = weight_of(layers[run.name]).shape
        rows = run.input.numel() // inputs * batch // len(example)
        found.setdefault(run.name, (max(rows, 1), inputs, outputs))

    watch(model, [example], layers, before=look)
    return found


def _gains(size: Size, bits: int, group_size: int, threads: int) -> bool:
    """Whether MatMulNBits is faster for a size."""
    rows, inputs, outputs = size
    groups, draw = -(-inputs // group_size), np.random.default_rng(0)
    held = 4 if bits == 3 else bits  # noqa: PLR2004 (as `runtime.group_operators` writes it)
    arrays: dict[str, Any] = {
        "weight": draw.standard_normal((inputs, outputs), np.float32),
        "codes": draw.integers(0, 256, (outputs, groups, group_size * held // 8), np.uint8),
        "scale": np.full(outputs * groups, 0.01, np.float32),
    }
    sizes: dict[str, Any] = {"K": inputs, "N": outputs, "bits": held, "block_size": group_size, "accuracy_level": 1}
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["float_"], name="float_"),
        helper.make_node("MatMulNBits", ["x", "codes", "scale"], ["kernel_"], name="kernel_", domain="com.microsoft", **sizes),
    ]
    graph = helper.make_graph(
        nodes,
        "kernels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, inputs))],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, (rows, outputs)) for node in nodes],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    feed = {"x": draw.standard_normal((rows, inputs), np.float32)}
    times = default_runtime().operator_milliseconds(model.SerializeToString(), feed, threads=threads, runs=_RUNS)
    return float(np.median(times["kernel_"])) <= _FASTER * float(np.median(times["float_"]))
