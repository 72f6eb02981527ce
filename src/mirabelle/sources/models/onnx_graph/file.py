"""Read an ONNX file, and cut its graph at given values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from mirabelle.errors import UserError, did_you_mean, first_line
from mirabelle.runtime.external_data import read_model
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources.models.onnx_graph.nodes import REMEDY


def read(path: Path) -> onnx.ModelProto:
    """The model of a file, with its external weights, and with its nodes in the order in which they can be computed.

    Raises:
        UserError: E130 if the file does not exist, E141 if it is damaged: neither the standard's checker nor ONNX Runtime
            accepts it, E143 if it stores tensors outside of its folder.
    """
    if not path.is_file():
        raise UserError("E130", f"no model at {path}", "check the path")
    try:
        proto, _ = read_model(path)
        _free_unknown_sizes(proto.graph)
        _sort(proto.graph)
        try:
            onnx.checker.check_model(proto)
        except onnx.checker.ValidationError as error:
            _check_loads(proto, error)
    except UserError as error:
        raise error.at(str(path)) from None
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise UserError("E141", f"{path} is not a valid ONNX file: {first_line(error)}", "export it again") from error
    return proto


def ending_in(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values as its outputs, and only the nodes that they need.

    Raises:
        UserError: E112 if the graph has no value of one of these names.
    """
    made = {name: onnx.ValueInfoProto(name=name) for node in proto.graph.node for name in node.output if name}
    made |= {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    for name in names:
        if name not in made:
            raise UserError("E112", f'the ONNX graph has no value "{name}"', did_you_mean(name, made))
    needed, nodes = set(names), []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            needed |= _read_by(node)
            nodes.append(node)
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    del found.graph.node[:], found.graph.output[:]
    found.graph.node.extend(nodes[::-1])
    found.graph.output.extend(made[name] for name in names)
    return found


def check_tensors(proto: onnx.ModelProto) -> None:
    """Raise an error unless all inputs and outputs are tensors.

    Raises:
        UserError: E121 if one is a sequence, a map or an optional value.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            what = str(kind).removesuffix("_type").replace("_", " ")
            raise UserError("E121", f'"{value.name}" of the ONNX graph is not a tensor, but of the kind {what}', REMEDY)


def _check_loads(proto: onnx.ModelProto, error: onnx.checker.ValidationError) -> None:
    """Raise the checker's error unless ONNX Runtime loads the model."""
    try:
        default_runtime().load(proto.SerializeToString(), 1)
    except UserError:
        raise error from None


def _free_unknown_sizes(graph: onnx.GraphProto) -> None:
    """Make sizes of −1 and 0 in declared shapes unknown ones, which is what exporters mean by them."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_value") and axis.dim_value <= 0:
                axis.ClearField("dim_value")


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes behind those that they read, as the standard asks; some converters do not."""
    makers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    if all(makers.get(name, -1) < position for position, node in enumerate(graph.node) for name in _read_by(node)):
        return
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(graph.node)):
        waiting = [start]
        while waiting:
            position = waiting[-1]
            before = {makers[name] for name in _read_by(graph.node[position]) if name in makers} - done - {position}
            if position in done or not before or len(waiting) > len(graph.node):
                waiting.pop()
                if position not in done:
                    done.add(position)
                    order.append(position)
            else:
                waiting.extend(sorted(before))
    nodes = [onnx.NodeProto.FromString(graph.node[position].SerializeToString()) for position in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, also in graphs inside it."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = attribute.g
            own = {value.name for value in (*inner.input, *inner.initializer)}
            own |= {name for part in inner.node for name in part.output}
            read_inside = {value.name for value in inner.output} | {name for part in inner.node for name in _read_by(part)}
            found |= read_inside - own
    return found
