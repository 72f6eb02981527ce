"""ONNX operators on sequences, which are tuples, and on optional values, which are None when empty."""

from __future__ import annotations

import torch
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.values import Value, integers, integers_of, tensor_of


@operator("SequenceEmpty")
def empty(_node: Node) -> Value:
    return ()


@operator("SequenceConstruct")
def construct(_node: Node, *parts: Value) -> Value:
    return parts


@operator("SequenceAt")
def at(_node: Node, parts: tuple[Value, ...], position: Value) -> Value:
    return parts[integers_of(position)[0]]


@operator("SequenceInsert")
def insert(_node: Node, parts: tuple[Value, ...], part: Value, position: Value = None) -> Value:
    place = len(parts) if position is None else integers_of(position)[0]
    return (*parts[:place], part, *parts[place:])


@operator("SequenceErase")
def erase(_node: Node, parts: tuple[Value, ...], position: Value = None) -> Value:
    place = (-1 if position is None else integers_of(position)[0]) % len(parts)
    return (*parts[:place], *parts[place + 1 :])


@operator("SequenceLength")
def length(_node: Node, parts: tuple[Value, ...]) -> Value:
    return integers(len(parts))


@operator("ConcatFromSequence")
def concat(node: Node, parts: tuple[Value, ...]) -> Tensor:
    tensors = [tensor_of(part) for part in parts]
    return torch.stack(tensors, node["axis"]) if node["new_axis"] else torch.cat(tensors, node["axis"])


@operator("SplitToSequence")
def split(node: Node, x: Tensor, sizes: Value = None) -> Value:
    axis = node["axis"]
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return parts if node["keepdims"] else tuple(part.squeeze(axis) for part in parts)
    lengths = integers_of(sizes)
    return torch.split(x, list(lengths) if tensor_of(sizes).ndim else lengths[0], axis)


@operator("Optional", "OptionalGetElement")
def optional(_node: Node, value: Value = None) -> Value:
    return value


@operator("OptionalHasElement")
def has_element(_node: Node, value: Value = None) -> Value:
    return integers(value is not None)
