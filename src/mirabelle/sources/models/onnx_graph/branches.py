"""Graphs inside nodes: constants are moved out, and a branch whose condition is known takes the place of its If."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference

from mirabelle.sources.models.onnx_graph.computing import computed
from mirabelle.sources.models.onnx_graph.nodes import ON_INTEGERS, node_of, tensor_from
from mirabelle.sources.models.onnx_graph.values import Integers, integers, is_integers, simplified

_Facts = dict[str, Integers]


class _Unknown:
    """A size that the file does not fix. Comparing or computing with it raises TypeError."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, _other: object) -> bool:
        raise TypeError

    def __bool__(self) -> bool:
        raise TypeError


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in _inside(node):
            yield from graphs_in(inner)


def with_branches_taken(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model after every If whose condition follows from constants and fixed sizes is replaced by its branch.

    Constants of graphs inside nodes become constants of the model, and names are made unique.
    """
    if not any(_inside(node) for node in proto.graph.node):
        return proto
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    graph = found.graph
    _rename(graph, _names(graph))
    _move_constants_out(graph)
    while _take_branches(found, version):
        pass
    return found


def shapes_of(proto: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """The sizes of values, as far as shape inference finds them with a free first axis of all inputs; "" is an unknown one."""
    open_ = onnx.ModelProto()
    open_.CopyFrom(proto)
    del open_.graph.value_info[:]
    stored = {tensor.name for tensor in open_.graph.initializer}
    for value in open_.graph.input:
        if value.name not in stored and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in open_.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(open_, data_prop=True).graph
    except Exception:  # noqa: BLE001 (shape inference is optional and may raise anything)
        graph = proto.graph
    return {
        value.name: tuple(axis.dim_value if axis.dim_value > 0 else axis.dim_param for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _take_branches(proto: onnx.ModelProto, version: int) -> bool:
    """Put known branches in the place of their Ifs; whether there were any."""
    graph = proto.graph
    facts = _known(proto, version)
    nodes: list[onnx.NodeProto] = []
    taken = False
    for node in graph.node:
        condition = facts.get(node.input[0]) if node.op_type == "If" and node.input else None
        if condition is None or not all(isinstance(item, (bool, np.bool_)) for item in condition.flat):
            nodes.append(node)
            continue
        taken = True
        branch = {one.name: one.g for one in node.attribute}["then_branch" if condition.flat[0] else "else_branch"]
        nodes.extend(branch.node)
        nodes.extend(
            onnx.helper.make_node("Identity", [value.name], [name])
            for value, name in zip(branch.output, node.output, strict=True)
        )
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return taken


def _known(proto: onnx.ModelProto, version: int) -> _Facts:
    """The values that follow from constants and from fixed sizes, as shape integers."""
    graph = proto.graph
    facts: _Facts = {}
    for entry in graph.initializer:
        _keep(facts, entry.name, entry)
    shapes = shapes_of(proto)
    for position, entry in enumerate(graph.node):
        if entry.op_type == "Constant":
            for attribute in entry.attribute:
                if attribute.name == "value":
                    _keep(facts, entry.output[0], attribute.t)
        elif entry.op_type == "Shape" and entry.input[0] in shapes:
            node = node_of(entry, version, position)
            sizes = [size if isinstance(size, int) else _Unknown() for size in shapes[entry.input[0]]]
            facts[entry.output[0]] = integers(sizes[node["start"] or 0 : node["end"]])
        elif entry.op_type in (*ON_INTEGERS, "Identity") and all(name in facts for name in entry.input if name):
            _compute(facts, entry, version, position)
    return facts


def _compute(facts: _Facts, entry: onnx.NodeProto, version: int, position: int) -> None:
    node = node_of(entry, version, position)
    try:
        found: Any = computed(node, [facts[name] if name else None for name in node.inputs])
    except Exception:  # noqa: BLE001 (an unknown size, of which nothing follows)
        return
    for name, value in zip(node.outputs, found if isinstance(found, list) else [found], strict=False):
        if is_integers(value):
            facts[name] = value


def _keep(facts: _Facts, name: str, tensor: onnx.TensorProto) -> None:
    if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL):
        value = simplified(tensor_from(tensor))
        if is_integers(value):
            facts[name] = value


def _inside(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]


def _names(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph defines, without those of graphs inside it."""
    return {
        *(value.name for value in graph.input),
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in node.output),
    }


def _rename(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Give names that graphs inside nodes define, and that are taken, other names."""
    for node in graph.node:
        for inner in _inside(node):
            others = {}
            for name in sorted(_names(inner) - {""}):
                if name in taken:
                    others[name] = next(one for k in itertools.count(2) if (one := f"{name}_{k}") not in taken)
                taken.add(others.get(name, name))
            if others:
                _replace(inner, others)
            _rename(inner, taken)


def _replace(graph: onnx.GraphProto, others: dict[str, str]) -> None:
    """Replace names in a graph and in all graphs inside it."""
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = others.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [others.get(name, name) for name in node.input]
        node.output[:] = [others.get(name, name) for name in node.output]
        for inner in _inside(node):
            hidden = _names(inner)
            _replace(inner, {name: other for name, other in others.items() if name not in hidden})


def _move_constants_out(graph: onnx.GraphProto) -> None:
    for inner in graphs_in(graph):
        if inner is graph:
            continue
        graph.initializer.extend(inner.initializer)
        del inner.initializer[:]
        kept = []
        for node in inner.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                moved = graph.initializer.add()
                moved.CopyFrom(node.attribute[0].t)
                moved.name = node.output[0]
            else:
                kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
        del inner.node[:]
        inner.node.extend(kept)
