"""The operators of an ONNX model that compute with stored weights or multiply and add, with their weights and costs.

Costs are those of the graph that runs: it runs once, so that the branch of an `If` that is taken counts, every turn of a
`Loop`, and every shape as it is. `model.products` defines the operations that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from mirabelle.errors import UserError
from mirabelle.model.products import Operation, mac_products
from mirabelle.numerics.arrays import Array, to_numpy
from mirabelle.runtime.codebook_operators import codes_looked_up
from mirabelle.runtime.drawn_inputs import batch_of, drawn_inputs
from mirabelle.runtime.group_operators import stored_codes
from mirabelle.runtime.runtime import OperatorShapes, default_runtime
from mirabelle.runtime.signature import Value, check_inputs, signature_of
from mirabelle.task.batch import Inputs, tensors_of

Shape = tuple[int, ...]
# Operators that lay out their first input anew; the others compute with all inputs.
_MOVING = ("DequantizeLinear", "Transpose", "Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice")
_INTEGERS = (
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2,
)  # fmt: skip
_FRACTIONS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class OnnxOperation:
    """One node that computes with stored weights, or whose products count.

    Args:
        node: of the graph or of a subgraph.
        weights: the stored tensors that it computes with.
        macs: multiply-accumulate operations for one sample; 0 if it does not run; None if the shapes are unknown.
    """

    node: NodeProto
    weights: tuple[TensorProto, ...]
    macs: int | None


def operations_of(model: ModelProto, inputs: Inputs | None = None) -> list[OnnxOperation]:
    """The operations of a model, in the order of the file, with those of subgraphs.

    What is computed from stored tensors alone belongs to the operator that uses it.

    Args:
        model: any ONNX model whose tensors are in one file; it is not changed.
        inputs: to run it on; by default random ones, which a model with free axes besides the batch cannot have.

    Raises:
        UserError: E131 if the inputs do not fit the model.
    """
    model = inliner.inline_local_functions(model) if model.functions else _copy(model)
    scopes = list(_scopes(model.graph, _Stored({}, {})))
    for position, (node, _) in enumerate(scopes):
        node.name = f"n{position}_"
    nodes = {node.name: (node, stored) for node, stored in scopes if not stored.holds(node.output[0])}
    counts = _counts(model, nodes, inputs)
    found = [
        OnnxOperation(node, tuple(stored.weights_of(node)), None if counts is None else counts.get(name, 0))
        for name, (node, stored) in nodes.items()
    ]
    return [one for one in found if one.macs or any(_is_weight(tensor) for tensor in one.weights)]


class _Stored:
    """The tensors that a graph stores, and the values computed from them alone; a subgraph sees those around it.

    Args:
        tensors: by name.
        makers: name of a value computed from stored tensors alone -> its node.
    """

    def __init__(self, tensors: dict[str, TensorProto], makers: dict[str, NodeProto]) -> None:
        self.tensors = tensors
        self._makers = makers

    def within(self, graph: GraphProto) -> _Stored:
        """The tensors for the nodes of a graph inside this one."""
        inner = _Stored({**self.tensors, **{tensor.name: tensor for tensor in graph.initializer}}, dict(self._makers))
        for node in graph.node:
            if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
                inner.tensors[node.output[0]] = tensor
            elif node.input and not _subgraphs(node) and all(inner.holds(name) for name in node.input if name):
                inner._makers.update(dict.fromkeys(node.output, node))
        return inner

    def holds(self, name: str) -> bool:
        return name in self.tensors or name in self._makers

    def weights_of(self, node: NodeProto) -> Iterator[TensorProto]:
        """The stored tensors with which a node computes; of codes that are packed in bytes, the codes."""
        codes = stored_codes(node, self.tensors) if node.op_type == "MatMulNBits" else None
        return self.of_all(node.input) if codes is None else iter((codes,))

    def of_all(self, names: Sequence[str]) -> Iterator[TensorProto]:
        """The stored tensors behind some values, each once."""
        found = {tensor.name: tensor for name in names for tensor in self._behind(name)}
        return iter(found.values())

    def _behind(self, name: str) -> list[TensorProto]:
        if name in self.tensors:
            return [self.tensors[name]]
        node = self._makers.get(name)
        if node is None:
            return []
        given = [tensor for own in (node.input[:1] if node.op_type in _MOVING else node.input) for tensor in self._behind(own)]
        codes = [tensor for tensor in given if tensor.data_type in _INTEGERS]
        if node.op_type == "Gather" and codes and (shared := codes_looked_up(node, codes[0], self.tensors)) is not None:
            return [shared]
        most = max((prod(tensor.dims) for tensor in codes), default=0)  # zero points of groups are fewer than codes
        codes = [tensor for tensor in codes if prod(tensor.dims) == most or node.op_type not in ("Sub", "Mul")]
        return codes or [tensor for tensor in given if tensor.data_type in _FRACTIONS] or given  # codes without their scale


def _scopes(graph: GraphProto, around: _Stored) -> Iterator[tuple[NodeProto, _Stored]]:
    """The nodes of a graph and of all its subgraphs, each with the tensors that it sees."""
    stored = around.within(graph)
    for node in graph.node:
        yield node, stored
        for inner in _subgraphs(node):
            yield from _scopes(inner, stored)


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs)
    ]


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, under the name of its value; None for text and sparse tensors."""
    (attribute,) = node.attribute
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute)), node.output[0])
    return None


def _is_weight(tensor: TensorProto) -> bool:
    return len(tensor.dims) > 1 and tensor.data_type in (*_INTEGERS, *_FRACTIONS)


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _counts(
    model: ModelProto, nodes: Mapping[str, tuple[NodeProto, _Stored]], given: Inputs | None
) -> dict[str, int | None] | None:
    """MACs for one sample by name of the node; None if the sizes are not known, or it does not run."""
    inputs = signature_of(model)[0]
    batch = batch_of(inputs) or 1
    own = None if given is None else _first(inputs, batch, given)
    try:
        feed = own or drawn_inputs(inputs, batch)
        calls = default_runtime().operator_shapes(model.SerializeToString(), feed)
    except UserError:
        return None
    except Exception:  # noqa: BLE001 (the runtime raises its own exceptions; random inputs may not fit)
        return None
    found: dict[str, int | None] = {}
    seen: dict[str, Shape] = {name: array.shape for name, array in feed.items()}
    for called in calls:
        if called.name in nodes:
            node, stored = nodes[called.name]
            before, more = found.get(called.name, 0), _macs(node, _Shapes(node, stored, called, seen))
            found[called.name] = None if before is None or more is None else before + more
            seen.update(zip(node.output, called.outputs, strict=False))
    return {name: None if count is None else count // batch for name, count in found.items()}


def _first(inputs: Sequence[Value], batch: int, given: Inputs) -> dict[str, Array]:
    """The first samples of the given inputs, by the names of the model's inputs."""
    if isinstance(given, Mapping) and set(given) == {value.name for value in inputs}:
        tensors = [given[value.name] for value in inputs]
    else:
        tensors = tensors_of(given)
    arrays = [to_numpy(tensor) for tensor in tensors]
    check_inputs(inputs, arrays)
    arrays = [
        array[: batch if value.sizes is None or isinstance(value.sizes[0], str) else value.sizes[0]] if array.ndim else array
        for value, array in zip(inputs, arrays, strict=True)
    ]
    return {value.name: array for value, array in zip(inputs, arrays, strict=True)}


class _Shapes:
    """The shapes of the inputs and outputs of one call of a node, by position."""

    def __init__(self, node: NodeProto, stored: _Stored, called: OperatorShapes, seen: Mapping[str, Shape]) -> None:
        known = {name: tuple(stored.tensors[name].dims) for name in node.input if name in stored.tensors}
        self._of = known | dict(seen) | _assigned([name for name in node.input if name], called.inputs, known)
        self._node, self.result = node, called.outputs[0] if called.outputs else ()

    def __getitem__(self, position: int) -> Shape:
        return self._of[self._node.input[position]]


def _assigned(names: Sequence[str], shapes: Sequence[Shape], known: Mapping[str, Shape]) -> dict[str, Shape]:
    """The listed shapes by name. Stored tensors that a runtime laid out anew for a kernel are missing among the shapes."""
    found: dict[str, Shape] = {}
    left, free = list(shapes), sum(name not in known for name in names)
    for name in names:
        if name in known and (len(left) <= free or left[0] != known[name]):
            continue
        if not left:
            return {}
        found[name] = left.pop(0)
        free -= name not in known
    return {} if left else found


def _macs(node: NodeProto, shapes: _Shapes) -> int | None:
    """MACs of one call; None if a shape is not known."""
    if node.op_type not in _RULES or (node.op_type == "Attention" and node.domain):
        return 0
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        return _RULES[node.op_type](shapes, attributes)
    except KeyError:
        return None


Rule = Callable[[_Shapes, Mapping[str, Any]], int]


def _sum(name: str, result: Shape, **arguments: Any) -> int:
    """The MACs of an operator of torch with these shapes."""
    operation: Operation[int] = Operation(name, arguments, result, lambda shape: shape)
    return sum(prod(lengths) for lengths in mac_products(operation))


def _convolution(weight: int, name: str = "conv2d") -> Rule:
    return lambda shapes, _: _sum(name, shapes.result, input=shapes[0], weight=shapes[weight])


def _product(transposed: str = "transA") -> Rule:
    """A matrix product; the attribute `transposed` says that the first factor is."""

    def macs(shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
        first = shapes[0]
        return _sum("matmul", shapes.result, self=(*first[:-2], first[-1], first[-2]) if attributes.get(transposed) else first)

    return macs


def _einsum(shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
    equation = attributes["equation"].decode()
    operands = [shapes[position] for position in range(equation.partition("->")[0].count(",") + 1)]
    return _sum("einsum", shapes.result, equation=equation, tensors=operands)


def _recurrent(shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
    del attributes
    return prod(shapes[0][:-1]) * (prod(shapes[1]) + prod(shapes[2]))


def _attention(heads: str, shared_heads: str) -> Rule:
    """Queries, keys and values, (batch, heads, length, width) or (batch, length, heads · width)."""

    def macs(shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
        query, key, value = shapes[0], shapes[1], shapes[2]
        if len(query) == len(key) == len(value) == 3:  # noqa: PLR2004 (batch, length, heads · width)
            count = attributes[heads]
            shared = attributes.get(shared_heads, count)
            query = (query[0], count, query[1], query[2] // count)
            key = (key[0], shared, key[1], key[2] // shared)
            value = (value[0], shared, value[1], value[2] // shared)
        return _sum("scaled_dot_product_attention", shapes.result, query=query, key=key, value=value)

    return macs


def _four_bits(shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
    return prod(shapes.result) * int(attributes["K"])


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv"), _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _convolution(1, "conv_transpose2d"),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "FusedMatMul"), _product()),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"), _product()),
    "MatMulNBits": _four_bits,
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "Attention": _attention("q_num_heads", "kv_num_heads"),
    "MultiHeadAttention": _attention("num_heads", "num_heads"),
}
