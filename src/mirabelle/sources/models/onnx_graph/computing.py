"""Compute nodes of an ONNX graph, on tensors or on shape integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mirabelle.sources.models.onnx_graph.nodes import ON_INTEGERS, TABLE, Node, type_of
from mirabelle.sources.models.onnx_graph.values import Value, is_integers, kind_of, tensor_of, typed

_ON_ANYTHING = (
    "Identity",
    "Shape",
    "Size",
    "Range",
    "ConstantOfShape",
    "Gather",
    "If",
    "Loop",
    "Scan",
)  # also accept shape integers
_BOOLEANS = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not")


def computed(node: Node, inputs: Sequence[Value]) -> Value:
    """The output of a node for these inputs, or a list of its outputs."""
    given = [value for value in inputs if value is not None]
    if given and node.kind in ON_INTEGERS and all(map(is_integers, given)):
        found, kind = ON_INTEGERS[node.kind](node, *inputs), _kind(node, given)
        return [typed(part, kind) for part in found] if isinstance(found, list) else typed(found, kind)
    if inputs and is_integers(inputs[0]) and node.kind not in _ON_ANYTHING:
        inputs = [tensor_of(inputs[0]), *inputs[1:]]
    return TABLE[node.kind](node, *inputs)


def _kind(node: Node, given: Sequence[Value]) -> torch.dtype:
    """The dtype of what a node computes from shape integers; by the standard, operands of one node have one type."""
    if node.kind in _BOOLEANS:
        return torch.bool
    if node.kind == "Cast":
        return type_of(node["to"], node)
    if node.kind == "ConstantOfShape":
        return torch.int64
    return kind_of(given[1 if node.kind == "Where" else 0])
