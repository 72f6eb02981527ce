"""The time of each layer of an exported model, with what belongs to it: conversions, folded norms, activations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto

from mirabelle.numerics.arrays import Array
from mirabelle.runtime.export_arguments import as_exported
from mirabelle.runtime.runtime import Runtime
from mirabelle.runtime.views import structure_of

_RUNS, _RUNS_OF_SHORT, _WARM_UP = 30, 100, 6  # calls; those of models of less than a millisecond
_KEPT = 0.8  # of the calls: the slowest ones were interrupted by other work
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
# What runtimes compute together with the layer before it, or at its cost.
_FOLLOWING = (
    *_CONVERSIONS, "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Tanh", "Gelu", "Erf",
    "Mul", "Add", "Div", "BatchNormalization",
)  # fmt: skip


def layer_milliseconds(
    runtime: Runtime, onnx: bytes, feed: Mapping[str, Array], layers: Collection[str], *, threads: int, whole_ms: float
) -> dict[str, float]:
    """The milliseconds of one call of each layer, without the slowest calls; layers that are not found are left out.

    A profile takes time, too: what its operators take together beyond the whole model is taken off each of them in equal parts.

    Args:
        runtime: that profiles operators.
        onnx: bytes of a file that `runtime.export` wrote, in which values and stored tensors are named after layers.
        feed: an array for every input.
        layers: names of modules.
        threads: number of threads of an operator.
        whole_ms: milliseconds of a call of the model without a profile.

    Raises:
        UserError: E111 from a runtime that cannot profile operators.
    """
    graph = structure_of(onnx).graph
    names = as_exported(layers, [tensor.name for tensor in graph.initializer])
    owners = {output: names[layer] for output, layer in owners_of(graph, names.keys()).items()}
    runs = _RUNS if whole_ms > 1 else _RUNS_OF_SHORT
    times = runtime.operator_milliseconds(onnx, feed, threads=threads, runs=runs)
    means = {name: _mean(_per_run(values, runs)[_WARM_UP:]) for name, values in times.items() if values}
    profiling = max(0.0, sum(means.values()) - whole_ms) / max(1, len(means))
    found: dict[str, float] = defaultdict(float)
    for name, owner in owners.items():
        if name in means:
            found[owner] += max(0.0, means[name] - profiling)
    return dict(found)


def owners_of(graph: GraphProto, layers: Collection[str]) -> dict[str, str]:
    """First output of each node that belongs to a layer -> name of the layer.

    A node belongs to the layer whose tensors it takes ("fc1.weight"), or after which its output is named ("fc1", "fc1:0").
    What follows a layer and has no layer of its own, such as a folded norm, an activation or the addition of a residual,
    belongs to it, if nothing else uses the layer's output; a runtime may compute both at once.
    """
    stored = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input) + Counter(value.name for value in graph.output)
    owners: dict[str, str] = {}
    for node in graph.node:
        owner = _of_tensors(node, layers, stored) or _named(node, layers) or _of_inputs(node, owners, uses)
        if owner:
            owners[node.output[0]] = owner
    return owners


def _named(node: NodeProto, layers: Collection[str]) -> str:
    name = node.output[0].partition(":")[0]
    return name if name in layers else ""


def _of_tensors(node: NodeProto, layers: Collection[str], stored: Collection[str]) -> str:
    """The layer whose weight a node takes. Equal scales and zero points are stored once, so a conversion shows nothing."""
    if node.op_type in _CONVERSIONS:
        return ""
    taken = (name.rpartition(".")[0] for name in node.input if name in stored)
    return next((name for name in taken if name in layers), "")


def _of_inputs(node: NodeProto, owners: Mapping[str, str], uses: Mapping[str, int]) -> str:
    """The layer that a node follows; the layer of its converted inputs, if all of them are of one."""
    given = [owners.get(name, "") if uses[name] == 1 else "" for name in node.input if name]
    if node.op_type in _FOLLOWING:
        return next(filter(None, given), "")
    return given[0] if len(set(given)) == 1 else ""


def _mean(times: Array) -> float:
    """The mean without the slowest calls; a median would keep the whole microseconds in which profiles are written."""
    return float(np.sort(times)[: max(1, int(_KEPT * len(times)))].mean())


def _per_run(times: Sequence[float], runs: int) -> Array:
    """The milliseconds of a node in each run; an operator that a runtime has split runs several times in each."""
    parts = max(1, len(times) // runs)
    whole: Array = np.asarray(times[: parts * (len(times) // parts)]).reshape(-1, parts).sum(1)
    return whole
