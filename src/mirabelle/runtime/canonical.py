"""A canonical form of ONNX files that does not depend on the exporter, the machine or the time.

Doc strings, metadata and value types are removed. Initializers are raw bytes in the order of their use, and each is stored
once. Values are named after the layer that computes them ("fc1" is the output of layer fc1, "fc1:0" an intermediate value of
it), if the exporter records layers and the graph has no subgraphs. Equal models give equal bytes, and a canonical model does
not change.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto

from mirabelle.runtime.initializers import own_zero_points, put_in_order, store_once
from mirabelle.runtime.seal import sealed

_SCOPES = "pkg.torch.onnx.name_scopes"
_IR_VERSION = 10


def canonical(model: ModelProto, metadata: Mapping[str, str], kept: Sequence[str] = ()) -> bytes:
    """The canonical bytes of a model, with their digest among the metadata.

    Args:
        model: the model; it is changed, since a copy of a large one would not fit into memory.
        metadata: metadata to store in it, such as labels.
        kept: names of values that are not renamed.
    """
    model.ir_version = _IR_VERSION
    for field in ("doc_string", "producer_version", "domain", "model_version", "metadata_props"):
        model.ClearField(field)
    model.producer_name = "mirabelle"
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    graph = model.graph
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "main"
    branches = any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)
    if not branches and any(_layer(node) for node in graph.node):
        _rename(model, _layer_names(model, kept))
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    store_once(graph)
    own_zero_points(graph)
    put_in_order(graph)
    return sealed(model)


def _layer_names(model: ModelProto, kept: Sequence[str]) -> dict[str, str]:
    """Old name of a value -> new name; outputs become "output" or "output_0", "output_1", …; inputs keep their names."""
    graph = model.graph
    fixed = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | set(kept)
    outputs = [value.name for value in graph.output]
    results = {name: "output" if len(outputs) == 1 else f"output_{k}" for k, name in enumerate(outputs) if name not in fixed}
    layers = [_layer(node) for node in graph.node]
    last = {layer: position for position, layer in enumerate(layers)}
    names: dict[str, str] = {}
    used: Counter[str] = Counter()
    for position, (node, layer) in enumerate(zip(graph.node, layers, strict=True)):
        for k, output in enumerate(node.output):
            if not output or output in fixed or output in results:
                continue
            if layer and position == last[layer] and k == 0:
                names[output] = layer
            else:
                names[output] = f"{layer}:{used[layer]}"
                used[layer] += 1
    names |= results
    taken = Counter(names.values())
    return {old: new for old, new in names.items() if taken[new] == 1 and new not in fixed}


def _layer(node: NodeProto) -> str:
    """The name of the module that a node was exported from; "" for the top module, or if it is not recorded."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    path = ast.literal_eval(scopes)
    return str(path[-2]) if len(path) > 1 else ""


def _rename(model: ModelProto, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        inputs = [names.get(name, name) for name in node.input]
        outputs = [names.get(name, name) for name in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)
