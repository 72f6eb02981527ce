"""Nodes of an ONNX graph, and the tables of the functions that compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
import torch

from mirabelle.errors import UserError
from mirabelle.sources.models.onnx_graph.values import Value

Function: TypeAlias = Callable[..., Value]  # (node, *inputs) -> the output, or a list of several
TABLE: dict[str, Function] = {}
ON_INTEGERS: dict[str, Function] = {}  # functions for nodes whose inputs are all shape integers

_TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16, onnx.TensorProto.INT32: torch.int32, onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool, onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.UINT16: torch.uint16, onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64, onnx.TensorProto.COMPLEX64: torch.complex64,
}  # fmt: skip


_TRACED: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def as_if_traced() -> Iterator[None]:
    """A context in which nodes that depend on values are refused as in an export."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Args:
        kind: type of the operator, such as "Conv".
        name: of the node, for messages.
        inputs: names of values; "" for an optional input that is missing.
        outputs: names of values; "" for an output that is not used.
        attributes: including the defaults of the standard; tensors are PyTorch tensors.
        version: of the operator set.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    version: int

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes.get(attribute)

    def refuse(self, what: str) -> UserError:
        """The error for a node whose operator is supported, but not with these attributes or inputs."""
        return UserError("E121", f'{self.kind} "{self.name}" is not supported with {what}', REMEDY)

    def need_values(self, what: str) -> None:
        """Raise an error while the graph is traced or exported, when values, on which `what` depends, are not known."""
        if _TRACED.get() or torch.compiler.is_exporting():
            raise self.depends_on(what, "values")

    def depends_on(self, what: str, on: str) -> UserError:
        """The error for a node that can be computed, but not traced or exported, because `what` depends on something."""
        ending = ", ".join(f'"{name}"' for name in self["computed_inputs"] or ())
        remedy = f"end the graph before it: [model] arguments = {{ outputs = [{ending}] }}" if ending else REMEDY
        message = f'{what} of {self.kind} "{self.name}" depends on {on}, so the graph cannot be traced or exported'
        return UserError("E121", message, remedy)


@dataclass(frozen=True)
class Block:
    """A graph inside a node: a branch of If, or the body of Loop, Scan or SequenceMap.

    Args:
        inputs: names of its own inputs.
        outputs: names of values.
        nodes: in the order in which they are computed.
        outer: names of values of the graph around it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outer: tuple[str, ...]


REMEDY = (
    "`mirabelle pack`, `bench` and `verify` accept the file; to train or prune it, export it without that, or end the graph "
    'before it: [model] arguments = { outputs = ["name of a value"] }'
)


def operator(*kinds: str) -> Callable[[Function], Function]:
    """A decorator that registers a function for operators of these kinds."""

    def enter(function: Function) -> Function:
        TABLE.update(dict.fromkeys(kinds, function))
        return function

    return enter


def on_integers(*kinds: str) -> Callable[[Function], Function]:
    """A decorator that registers a function for operators of these kinds whose inputs are all shape integers."""

    def enter(function: Function) -> Function:
        ON_INTEGERS.update(dict.fromkeys(kinds, function))
        return function

    return enter


def node_of(proto: onnx.NodeProto, version: int, position: int) -> Node:
    """A node of a file, with the default values of its attributes.

    The values that graphs inside it read from outside are further inputs of the node, named by its attribute `outer`.
    """
    attributes: dict[str, Any] = {}
    if onnx.defs.has(proto.op_type, version, ""):
        schema = onnx.defs.get_schema(proto.op_type, version)
        attributes = {
            name: _plain(attribute.default_value)
            for name, attribute in schema.attributes.items()
            if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
        }
    attributes |= {
        one.name: _block(one.g, version) if one.type == onnx.AttributeProto.GRAPH else _plain(one) for one in proto.attribute
    }
    blocks = [value for value in attributes.values() if isinstance(value, Block)]
    outer = tuple(dict.fromkeys(name for block in blocks for name in block.outer))
    if blocks:
        attributes["outer"] = outer
    name = proto.name or f"{proto.op_type}_{position}"
    return Node(proto.op_type, name, (*proto.input, *outer), tuple(proto.output), attributes, version)


def _block(graph: onnx.GraphProto, version: int) -> Block:
    nodes = tuple(node_of(entry, version, position) for position, entry in enumerate(graph.node))
    inputs, outputs = tuple(value.name for value in graph.input), tuple(value.name for value in graph.output)
    own = {"", *inputs, *(name for node in nodes for name in node.outputs)}
    read = dict.fromkeys([*(name for node in nodes for name in node.inputs), *outputs])
    return Block(inputs, outputs, nodes, tuple(name for name in read if name not in own))


def tensor_from(proto: onnx.TensorProto) -> torch.Tensor:
    """A tensor of the file as a PyTorch tensor."""
    array = onnx.numpy_helper.to_array(proto)
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array, order="C"))


def type_of(code: int, node: Node) -> torch.dtype:
    """The PyTorch dtype of an ONNX data type, given by its number."""
    if code not in _TYPES:
        raise node.refuse(f"data type {code}")
    return _TYPES[code]


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return tensor_from(value)
    if isinstance(value, (list, tuple)) or attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
    return value
